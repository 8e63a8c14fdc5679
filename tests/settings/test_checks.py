"""Settings refuse what would fail, or mislead, hours later; each message names a value that works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.model.spec import UnetSpec
from tessera.settings.common import RunnerSettings, TrackingSettings
from tessera.settings.demo import DemoSettings
from tessera.settings.evaluate import EvaluateSettings
from tessera.settings.ingest import IngestSettings
from tessera.settings.places import home as tessera_home
from tessera.settings.places import input_path, local_input_path, output_path
from tessera.settings.predict import PredictSettings, parse_roi
from tessera.settings.sections import parse_sections
from tessera.settings.segment import AgglomerationSettings, SegmentSettings, WatershedSettings
from tessera.settings.train import (
    AnnotatedSections,
    DataSettings,
    LossSettings,
    ResourceSettings,
    ScheduleSettings,
    TrainSettings,
)
from tessera.storage.locations import Url

SOME = [AnnotatedSections("em", "cells")]


def _ingest(**changes: Any) -> IngestSettings:
    return IngestSettings(**{"source": "a.tif", "output": "v", "voxel_size_nm": (50, 4, 4)} | changes)


def _predict(**changes: Any) -> PredictSettings:
    return PredictSettings(**{"volume": "v", "model": "m", "output": "o"} | changes)


def _segment(**changes: Any) -> SegmentSettings:
    return SegmentSettings(**{"volume": "v", "output": "o"} | changes)


def _crop(crop: int, padding: str, depth: int) -> TrainSettings:
    return TrainSettings(network=UnetSpec(2, depth, padding), schedule=ScheduleSettings(crop_px=crop))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: _ingest(source=""), r"source is not given\. Try --source stack\.tif\."),
        (lambda: _ingest(output=""), r"output is not given\. Try --output my-volume\."),
        (lambda: _ingest(voxel_size_nm=None), r"voxel_size_nm is not given: .*--voxel_size_nm '\[50, 4, 4\]'"),
        (lambda: _ingest(voxel_size_nm=(50, -4, 4)), r"\[50, -4, 4\] is not above 0 and finite.*'\[50, 4, 4\]'"),
        (lambda: _ingest(voxel_size_nm=(50, 0, 4)), r"\[50, 0, 4\] is not above 0"),
        (lambda: _ingest(voxel_size_nm=(nan, 4, 4)), r"\[nan, 4, 4\] is not above 0 and finite"),
        (lambda: _ingest(voxel_size_nm=(50, 4, inf)), r"\[50, 4, inf\] is not above 0 and finite"),
        (lambda: _ingest(chunk=(0, 4, 4)), r"chunk=\[0, 4, 4\]: every extent.*Try \[16, 256, 256\]"),
        (lambda: _ingest(shard=(4, -4, 4)), r"shard=\[4, -4, 4\]: every extent"),
        (lambda: _predict(model=""), r"model is not given\. Try --model models:/tessera-unet/1\."),
        (lambda: _predict(memory_gib=0.0), r"memory_gib=0 must be above 0.*Try 4"),
        (lambda: _predict(tile=(1, 0, 9)), r"tile=\[1, 0, 9\]: every extent.*Try \[1, 512, 512\]"),
        (lambda: _predict(block=(0, 1, 1)), r"block=\[0, 1, 1\]: every extent"),
        (lambda: _segment(threshold=1.0), r"threshold=1\.0 is no probability below 1.*Try 0\.5"),
        (lambda: _segment(threshold=nan), r"threshold=nan is no probability"),
        (lambda: WatershedSettings(smoothing_nm=-1), r"watershed\.smoothing_nm=-1 must be at least 0.*Try 8 and 96"),
        (lambda: WatershedSettings(halo_px=0), r"watershed\.halo_px=0 at least 1: blocks without a voxel in common"),
        (lambda: WatershedSettings(overlap=0), r"watershed\.overlap=0 is no share above 0\. Try 0\.5"),
        (lambda: AgglomerationSettings(threshold=1.5), r"agglomeration\.threshold=1\.5 must be a probability"),
        (lambda: AgglomerationSettings(link=0), r"agglomeration\.link=0 a share above 0\. Try 0\.5 and 0\.5"),
        (lambda: EvaluateSettings("v", ""), r"labels is not given\. Try --labels my-labels\."),
        (lambda: EvaluateSettings("v", "l", threshold=-0.1), r"threshold=-0\.1 is no probability.*Try 0\.5"),
        (lambda: RunnerSettings(workers=-1), r"workers=-1 must be at least 0 .*Try 0 and 3"),
        (lambda: RunnerSettings(attempts=0), r"attempts=0 at least 1"),
        (lambda: TrackingSettings(experiment=""), r"tracking\.experiment is empty.*Try 'tessera'"),
        (lambda: DemoSettings(sections=7), r"sections=7 and size=512 leave too little.*at least 8 sections of 256 px"),
        (lambda: DemoSettings(steps=0), r"steps=0: without a step nothing is learned\. Try 240\."),
        (lambda: DataSettings(train=SOME), r"must both be given or both be empty.*Try holding out the last 4"),
        (lambda: DataSettings(validation=SOME), r"must both be given or both be empty"),
        (
            lambda: DataSettings(SOME, SOME, labels_are="instances", border_px=-2),
            r"data\.border_px=-2: the membrane between two cells .*Try 2",
        ),
        (lambda: EvaluateSettings("", "l"), r"volume is not given\. Try .*--cells my-cells to score cells"),
        (
            lambda: EvaluateSettings("", "l", cells="c", labels_are="mask"),
            r"labels_are=mask without volume.*a mask has",
        ),
        (lambda: LossSettings(w0=-1), r"loss\.w0=-1 must not be negative.*The paper has 10 and 5"),
        (lambda: LossSettings(sigma_px=nan), r"loss\.sigma_px=nan"),
        (lambda: LossSettings(w0=inf), r"both finite"),
        (lambda: LossSettings(dice=-1), r"loss\.dice=-1 must not be negative.*Try 1, or 0"),
        (lambda: LossSettings(dice=nan), r"loss\.dice=nan must not be negative and must be finite"),
        (lambda: ScheduleSettings(steps=0), r"schedule\.steps=0 must be at least 1"),
        (lambda: ResourceSettings(workers=0), r"resources\.workers=0 must be at least 1"),
        (lambda: UnetSpec(filters=0), r"filters=0: a network needs at least one.*The least is 1; try 32\."),
        (lambda: UnetSpec(depth=9), r"depth=9: 1 to 6 poolings are supported.*Try 6\."),
        (lambda: UnetSpec(depth=0), r"depth=0: 1 to 6 poolings.*Try 1\."),
        (lambda: _crop(193, "same", 3), r"schedule\.crop_px: crop=193 px is illegal.*Try crop=192"),
        (lambda: _crop(390, "valid", 4), r"schedule\.crop_px: crop=390 px is illegal.*Try crop=388"),
        (lambda: ResourceSettings(workers="4-2"), r"resources\.workers=4-2 must be .*a range such as 2-8"),
        (lambda: ResourceSettings(workers="0-2"), r"resources\.workers=0-2 must be at least 1"),
        (lambda: ResourceSettings(workers="many"), r"resources\.workers=many must be at least 1, or a range"),
        (lambda: ResourceSettings(workers="2-8", resize_every_s=0), r"resize_every_s=0 must be above 0.*Try 60"),
        (lambda: TrainSettings(name="a b"), r"name='a b' becomes a folder.*Try membranes-1"),
        (lambda: TrainSettings(name=".."), r"name='\.\.' becomes a folder"),
        (lambda: TrainSettings(name="a/../../b"), r"becomes a folder"),
        (lambda: TrainSettings(refit="../b"), r"refit='\.\./b' becomes a folder"),
        (lambda: TrainSettings(register_as=""), r"register_as='' is no name for a model.*Try tessera-unet"),
        (lambda: TrainSettings(register_as="lab/unet"), r"register_as='lab/unet' is no name for a model"),
        (lambda: TrainSettings(seed=-1), r"seed=-1 does not fit .*give 0 to 2\^32 - 1"),
        (lambda: TrainSettings(seed=2**32), r"seed=4294967296 does not fit"),
        (
            lambda: TrainSettings(keep_normalisation=True),
            r"keep_normalisation=true without start_from: there is no mod",
        ),
        (lambda: DataSettings(unknown_label=0), r"data\.unknown_label=0: 0 is membrane already.*such as 255"),
        (lambda: EvaluateSettings("v", "l", unknown_label=0), r"^unknown_label=0: 0 is membrane already"),
    ],
)
def test_a_setting_that_would_fail_later_is_refused_at_once(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


def test_the_crop_that_a_refusal_names_is_legal() -> None:
    assert _crop(192, "same", 3).schedule.crop_px == 192 and _crop(388, "valid", 4).schedule.crop_px == 388


@given(st.integers(1, 200), st.integers(1, 64))
def test_no_multiple_of_the_workers_is_nearer_to_the_batch_than_the_rounded_one(batch: int, workers: int) -> None:
    rounded = ScheduleSettings(batch=batch).batch_on(workers)
    assert rounded >= workers and rounded % workers == 0
    others = range(workers, 300, workers)
    assert abs(rounded - batch) == min(abs(other - batch) for other in others)


def test_settings_are_values(home: Path) -> None:
    assert asdict(_predict(tile=(1, 512, 512)))["tile"] == (1, 512, 512) and _predict() == _predict()
    with pytest.raises(AttributeError, match="cannot assign to field"):
        _predict().tile = (1, 1, 1)  # type: ignore[misc]


# Sections


@given(st.lists(st.integers(0, 30), unique=True, min_size=1), st.integers(31, 50))
def test_a_list_of_numbers_selects_them_in_its_order(chosen: list[int], depth: int) -> None:
    assert parse_sections(",".join(map(str, chosen)), depth) == tuple(chosen)


@given(st.integers(1, 50), st.data())
def test_a_range_counts_both_ends(depth: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, depth - 1))
    last = data.draw(st.integers(first, depth - 1))
    assert parse_sections(f"{first}-{last}", depth) == tuple(range(first, last + 1))
    assert parse_sections(None, depth) == tuple(range(depth))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("first", r"'first' is no number or range\. Try '0-19' or '3,5'"),
        ("", "is not a selection"),
        ("0-3-5", "is not a selection"),
        ("-3", "is not a selection"),
        ("1.5", "is not a selection"),
        ("0-3,2", r"selects one section twice\. Try '0-3'"),
        ("5-2", r"'5-2' runs backwards\. Try '2-5'"),
        ("0-6", r"passes the volume, which has 6 sections, 0-5\. Try '0-5'"),
    ],
)
def test_a_selection_that_is_none_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_sections(text, 6)


# Regions of interest


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 8), st.integers(1, 9)), min_size=3, max_size=3))
def test_a_region_reads_back_or_is_refused(axes: list[tuple[int, int, int]]) -> None:
    shape = tuple(n for n, _, _ in axes)
    text = ",".join(f"{a}:{b}" for _, a, b in axes)
    if all(a < b <= n for n, a, b in axes):
        roi = parse_roi(text, shape)
        assert (roi.start, roi.stop) == (tuple(a for _, a, _ in axes), tuple(b for _, _, b in axes))
    else:
        with pytest.raises(ValueError, match=rf"empty, runs backwards or passes the volume.* Try 0:{shape[0]},"):
            parse_roi(text, shape)


@pytest.mark.parametrize("text", ["x", "0:1", "0:1,0:1", "0:1,0:1,0:1,0:1", "0:1,0:1,1", "0:1,0:1,0:-1", "0-1,0-1,0-1"])
def test_text_that_is_no_region_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not three ranges z, y, x\. Try 0:4,0:32,0:32\."):
        parse_roi(text, (4, 32, 32))


def test_a_volume_with_channels_has_no_region() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 4, 32, 32\): networks here read one channel.*of its own"):
        parse_roi(None, (2, 4, 32, 32))


# Places


def test_a_name_lands_under_home_and_a_path_where_it_says(home: Path, tmp_path: Path) -> None:
    assert tessera_home() == home
    assert output_path("em") == output_path("em.zarr") == home / "volumes" / "em.zarr"
    assert output_path(str(tmp_path / "em")) == tmp_path / "em.zarr"
    with pytest.raises(ValueError, match=r"the output has no name\. Try --output my-volume"):
        output_path("")


def test_an_input_is_found_as_a_path_or_under_home(home: Path, tmp_path: Path) -> None:
    for folder in (home / "volumes" / "em.zarr", tmp_path / "other.zarr"):
        folder.mkdir(parents=True)
    assert input_path("em") == input_path("em.zarr") == home / "volumes" / "em.zarr"
    assert input_path(str(tmp_path / "other.zarr")) == tmp_path / "other.zarr"
    with pytest.raises(FileNotFoundError, match=rf"gone does not exist: looked for .*{home}/volumes/gone\.zarr"):
        input_path("gone")
    assert input_path("s3://bucket/em.zarr", anonymous=True) == Url("s3", "bucket", "em.zarr", anonymous=True)
    with pytest.raises(ValueError, match=r"is a URL: slices are read from disks only\. Copy them"):
        local_input_path("s3://bucket/em.tif")
    with pytest.raises(ValueError, match="no input was named"):
        input_path("")


@pytest.mark.parametrize("make", [_predict, _segment])
def test_an_output_that_is_its_input_is_refused_however_it_is_spelled(
    home: Path, tmp_path: Path, make: Callable[..., Any]
) -> None:
    (home / "volumes" / "em.zarr").mkdir(parents=True)
    (tmp_path / "link.zarr").symlink_to(home / "volumes" / "em.zarr")
    for volume, output in (("em", "em"), ("em.zarr", str(home / "volumes" / "em")), ("em", str(tmp_path / "link"))):
        with pytest.raises(ValueError, match=r"is the input itself .*overwritten while it is read\. Try --output "):
            make(volume=volume, output=output, overwrite=True)
    with pytest.raises(ValueError, match=r"is the input itself \(s3://b/em\.zarr\).*Try --output s3://b/em-2\."):
        make(volume="s3://b/em.zarr", output="s3://b/em")
    assert make(volume="em", output="em-2").output == "em-2"


def test_an_output_goes_to_a_url_that_can_be_written_to() -> None:
    assert str(output_path("s3://bucket/lab/em")) == "s3://bucket/lab/em.zarr"
    with pytest.raises(ValueError, match=r"web servers are read only\. Give an output such as s3://bucket"):
        output_path("https://host/em")


def test_shards_are_refused_for_a_format_without_them() -> None:
    with pytest.raises(ValueError, match=r"shard=\[16, 64, 64\] with ome_zarr 0\.4.*give --block \[16, 64, 64\]"):
        _predict(ome_zarr="0.4", shard=(16, 64, 64))


@pytest.mark.parametrize(
    ("output", "fragments"),
    [
        ("cells", "cells-fragments"),
        ("a/cells.zarr", "a/cells-fragments.zarr"),
        ("s3://b/c.zarr/", "s3://b/c-fragments.zarr"),
    ],
)
def test_fragments_lie_beside_the_cells(output: str, fragments: str) -> None:
    assert _segment(output=output, method="watershed").fragments_name == fragments
    assert _segment(output=output, method="watershed", fragments="mine").fragments_name == "mine"
