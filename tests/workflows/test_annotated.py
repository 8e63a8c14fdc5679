"""What is wrong with annotated sections is said before a worker starts, with the setting that mends it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from terminal import refusal
from tessera.images.targets import UNKNOWN
from tessera.settings.train import AnnotatedSections, DataSettings
from tessera.workflows.annotated import CONTEXT_PX, AnnotatedSet, check_mask_values, load_annotated
from volumes import grey, mask, put_volume

SHAPE = (6, 32, 40)
Refuse = Callable[..., str]


@pytest.fixture
def put(home: Path) -> Callable[..., str]:
    """Put a volume under TESSERA_HOME; gives the name that settings find it by."""

    def put(name: str, voxels: NDArray[Any], *size: Any, **attributes: Any) -> str:
        put_volume(home / "volumes" / f"{name}.zarr", voxels, *size, **attributes)
        return name

    return put


@pytest.fixture
def train(
    capsys: pytest.CaptureFixture[str], home: Path, put: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> Refuse:
    """The message of `tessera train` on bad data, sections 0-3 to learn from, 4-5 of good data held out."""
    put("em", grey(SHAPE))
    put("cells", mask(SHAPE))
    monkeypatch.setattr("tessera.engine.session.connected", lambda: pytest.fail("Ray was started"))
    monkeypatch.setattr("tessera.workflows.train.tracked_run", lambda *_, **__: pytest.fail("a run was begun"))

    def run(
        volume: str = "em",
        labels: str = "cells",
        sections: str | None = "0-3",
        *words: str,
        validation: str | None = None,
    ) -> str:
        learned = [{"volume": volume, "labels": labels, "sections": sections}]
        held_out = [{"volume": "em", "labels": "cells", "sections": "4-5"}]
        data = ["--data.train", json.dumps(learned), "--data.validation", validation or json.dumps(held_out)]
        return refusal(capsys, home, "train", "--schedule.crop_px", 16, *data, *words)

    return run


# What is read


def _load(put: Callable[..., str], labels: NDArray[Any], sections: str | None = None, **data: Any) -> AnnotatedSet:
    chosen = [AnnotatedSections(put("em", grey(SHAPE)), put("cells", labels), sections)]
    return load_annotated(chosen, DataSettings(chosen, chosen, **data))


def test_good_sections_arrive_with_membrane_as_one(put: Callable[..., str]) -> None:
    found = _load(put, mask(SHAPE), "1,4")
    assert [np.array_equal(raw, grey(SHAPE)[z]) for raw, z in zip(found.raw, (1, 4), strict=True)] == [True, True]
    assert all(np.array_equal(one, (mask(SHAPE)[0] == 0).astype(np.uint8)) for one in found.membrane)
    assert found.names == ("em.zarr section 1", "em.zarr section 4")
    assert (found.dtype, found.voxel_size_nm) == ("uint8", (50.0, 4.0, 4.0))


def test_inverted_masks_and_instances_give_the_same_membrane(put: Callable[..., str], home: Path) -> None:
    instances = np.where(mask(SHAPE) > 0, np.arange(SHAPE[2]) // 8 + 1, 0).astype(np.uint16)
    plain = mask(SHAPE)[0] == 0
    for name, labels, meaning in (
        ("inverted", 255 - mask(SHAPE), {"labels_are": "membranes"}),
        ("instances", instances, {"labels_are": "instances"}),
        ("zero-one", mask(SHAPE) // 255, {}),
    ):
        chosen = [AnnotatedSections(put(f"{name}-em", grey(SHAPE)), put(name, labels))]
        found = load_annotated(chosen, DataSettings(chosen, chosen, **meaning))  # type: ignore[arg-type]
        assert [np.array_equal(one, plain) for one in found.membrane] == [True] * SHAPE[0], name


def test_the_fingerprint_changes_with_voxels_labels_and_choice(put: Callable[..., str], home: Path) -> None:
    put("em", grey(SHAPE))
    put("other", grey(SHAPE, seed=1))
    put("cells", mask(SHAPE))
    put("shifted", np.roll(mask(SHAPE), 1, 2))
    choices = [("em", "cells", "0-3"), ("other", "cells", "0-3"), ("em", "shifted", "0-3"), ("em", "cells", "0-4")]
    prints = []
    for choice in (*choices, choices[0]):
        chosen = [AnnotatedSections(*choice)]
        prints.append(load_annotated(chosen, DataSettings(chosen, chosen)).fingerprint)
    assert len(set(prints)) == len(choices) and prints[0] == prints[-1]


@given(st.sets(st.integers(0, 255), min_size=1, max_size=4))
def test_a_mask_has_zero_and_one_other_value(values: set[int]) -> None:
    sections = [np.full((2, 2), value, np.uint8) for value in values]
    if len(values) == 1 or (len(values) == 2 and 0 in values):
        check_mask_values(sections, "cells")
    else:
        with pytest.raises(ValueError, match=r"the labels cells hold the values .*: a mask has two"):
            check_mask_values(sections, "cells")


# Labels that are not what they should be


def test_labels_of_another_shape_are_refused(train: Refuse, put: Callable[..., str]) -> None:
    told = train("em", put("bad", mask((6, 32, 32))))
    assert "em.zarr has shape (6, 32, 40)" in told and "bad.zarr have (6, 32, 32): both must be z, y, x and" in told
    assert told.endswith("ingest them with --offset_nm, where they begin, in nanometers.")


def test_labels_of_a_part_are_learned_from_where_they_lie(put: Callable[..., str], home: Path) -> None:
    image, whole = grey((8, 300, 310)), mask((8, 300, 310))
    part = (slice(2, 6), slice(140, 180), slice(150, 230))
    put("em", image)
    put_volume(home / "volumes" / "part.zarr", whole[part], translation_nm=(100, 560, 600), kind="labels")
    chosen = [AnnotatedSections("em", "part", "1,3")]
    found = load_annotated(chosen, DataSettings(chosen, chosen), input_sections=3)
    assert found.names == ("em.zarr section 3", "em.zarr section 5")
    rows, columns = slice(140 - CONTEXT_PX, 180 + CONTEXT_PX), slice(150 - CONTEXT_PX, 310)
    for i, z in enumerate((3, 5)):
        np.testing.assert_array_equal(found.raw[i], image[z, rows, columns])
        np.testing.assert_array_equal(found.neighbours[i], image[z - 1 : z + 2, rows, columns])
        expected = np.full((300, 310), UNKNOWN, np.uint8)
        expected[part[1:]] = whole[z][part[1:]] == 0
        np.testing.assert_array_equal(found.membrane[i], expected[rows, columns])


def test_labels_that_pass_their_image_are_refused(train: Refuse, home: Path) -> None:
    put_volume(home / "volumes" / "far.zarr", mask((6, 20, 20)), translation_nm=(50, 60, 0), kind="labels")
    told = train("em", "far", "0-2")
    assert "far.zarr cover [1:7, 15:35, 0:20] of " in told and "where there is no image nothing can be learned." in told
    assert "leave sections out of" in told


def test_sections_of_a_part_are_kept_apart_by_where_they_lie(train: Refuse, home: Path) -> None:
    put_volume(home / "volumes" / "late.zarr", mask((3, 32, 40)), translation_nm=(100, 0, 0), kind="labels")
    assert "sections [4] of " in train("em", "late", "0-2")


def test_labels_of_another_voxel_size_are_refused(train: Refuse, put: Callable[..., str]) -> None:
    told = train("em", put("bad", mask(SHAPE), (50, 8, 8)))
    assert "are [50.0, 4.0, 4.0] nm, those of its labels" in told and "[50.0, 8.0, 8.0] nm: labels would" in told


def test_instances_that_touch_get_a_membrane_between_them(put: Callable[..., str]) -> None:
    touching = np.broadcast_to(np.arange(SHAPE[2]) // 10 + 1, SHAPE).astype(np.uint64)
    found = _load(put, touching, "2", labels_are="instances", border_px=4)
    assert np.flatnonzero(found.membrane[0][7]).tolist() == [8, 9, 10, 11, 18, 19, 20, 21, 28, 29, 30, 31]


def test_instances_that_touch_need_a_border(train: Refuse, put: Callable[..., str]) -> None:
    touching = np.broadcast_to(np.arange(SHAPE[2]) // 10 + 1, SHAPE).astype(np.uint64)
    told = train("em", put("bad", touching), "0-3", "--data.labels_are", "instances", "--data.border_px", "0")
    assert "hold only cell in the chosen sections" in told and "--data.border_px 2 draws a membrane between" in told


def test_a_mask_of_three_values_may_be_instances(train: Refuse, put: Callable[..., str]) -> None:
    labels = mask(SHAPE)
    labels[1, 3, 3] = 7
    told = train("em", put("bad", labels))
    assert "hold the values 0 (1,200 px), 7 (1 px), 255 (3,919 px): a mask has two, 0 for membrane" in told
    assert "pass --data.labels_are instances" in told
    train_instances = train("em", "bad", "0-7", "--data.labels_are", "instances")
    assert "passes the volume" in train_instances


@pytest.mark.parametrize(("value", "held"), [(0, "membrane"), (255, "cell")])
def test_constant_labels_are_refused(train: Refuse, put: Callable[..., str], value: int, held: str) -> None:
    told = train("em", put("bad", np.full(SHAPE, value, np.uint8)))
    assert f"hold only {held} in the chosen sections: nothing can be told apart." in told
    assert told.endswith("check the label file and the sections.")


def test_labels_that_look_inverted_name_the_switch(train: Refuse, put: Callable[..., str]) -> None:
    told = train("em", put("bad", 255 - mask(SHAPE)))
    assert "membrane covers 7" in told and "are they inverted (0 = cell)?" in told
    assert "pass --data.labels_are membranes; membrane is usually 15-30%." in told


def test_the_switch_on_labels_that_are_right_is_refused_too(train: Refuse) -> None:
    assert "are they inverted" in train("em", "cells", "0-3", "--data.labels_are", "membranes")


def test_labels_that_are_no_names_are_refused(train: Refuse, put: Callable[..., str]) -> None:
    told = train("em", put("bad", mask(SHAPE).astype(np.float32)))
    assert "labels of dtype float32 are not whole numbers" in told and "Save them as uint8 with 0 for membrane" in told
    told = train("em", put("negative", mask(SHAPE).astype(np.int16) - 1), "0-3", "--data.labels_are", "instances")
    assert "labels hold negative values, the least is -1: 0 is membrane, above 0 is cell." in told


# Images that are not what they should be


def test_nan_in_an_image_is_refused_with_its_section(train: Refuse, put: Callable[..., str]) -> None:
    image = grey(SHAPE).astype(np.float32)
    image[2, 1, 1] = np.nan
    told = train(put("bad", image))
    assert "section 2 of " in told and "holds NaN or infinite values: the loss would become NaN." in told
    assert told.endswith("Replace them before ingest.")


def test_an_image_that_is_a_mask_is_refused(train: Refuse, put: Callable[..., str]) -> None:
    told = train(put("bad", mask(SHAPE) > 0))
    assert "bad.zarr has dtype bool, which is no grey scale: is it the mask?" in told
    assert "or save the image as uint8" in told


def test_an_image_without_variation_is_refused(train: Refuse, put: Callable[..., str]) -> None:
    assert "every voxel is 7.0: nothing varies" in train(put("bad", np.full(SHAPE, 7, np.uint8)))


def test_an_image_without_voxel_size_is_refused(train: Refuse, home: Path) -> None:
    plain = zarr.create_array(home / "volumes" / "plain.zarr", shape=SHAPE, dtype="uint8", chunks=SHAPE)
    plain[:] = grey(SHAPE)
    assert "plain.zarr has no voxel size: give it one with tessera ingest --voxel_size_nm." in train("plain")


def test_an_empty_volume_is_refused(train: Refuse, home: Path) -> None:
    zarr.create_array(home / "volumes" / "empty.zarr", shape=(0, 32, 40), dtype="uint8", chunks=(1, 32, 40))
    assert "empty.zarr: shape (0, 32, 40) holds no voxel: nothing to read. Write it again." in train("empty")


def test_channels_are_refused(train: Refuse, put: Callable[..., str]) -> None:
    two = (2, *SHAPE)
    assert "both must be z, y, x and equal" in train(put("bad", grey(two)), put("labels", mask(two)), "0-1")


@pytest.mark.parametrize("which", ["volume", "labels"])
def test_a_missing_volume_is_named_with_the_places_looked_at(train: Refuse, home: Path, which: str) -> None:
    told = train(**{which: "gone"})
    assert told.startswith("gone does not exist: looked for ") and f"{home}/volumes/gone.zarr" in told


# Sections that cannot be chosen


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ("0-6", "passes the volume, which has 6 sections, 0-5. Try '0-5'."),
        ("3-0", "'3-0' runs backwards. Try '0-3'."),
        ("some", "'some' is no number or range. Try '0-19' or '3,5'."),
        ("0-4", "sections [4] of "),
        (None, "sections [4, 5] of "),
    ],
)
def test_sections_outside_or_in_both_sets_are_refused(train: Refuse, sections: str | None, told: str) -> None:
    message = train("em", "cells", sections)
    assert told in message
    if told.startswith("sections"):
        assert "are in both data.train and data.validation: the threshold would be chosen on what was" in message
        assert message.endswith("Take them out of one.")


def test_missing_or_blank_sections_are_refused(train: Refuse, put: Callable[..., str]) -> None:
    told = train(put("bad", grey(SHAPE), invalid_sections=[1, 3, 5]))
    assert "sections [1, 3] of " in told and told.endswith("are missing or blank: leave them out of `sections`.")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ((grey(SHAPE).astype(np.uint16), (50, 4, 4)), "training sections are uint16 of (50.0, 4.0, 4.0) nm"),
        ((grey(SHAPE), (50, 8, 8)), "training sections are uint8 of (50.0, 8.0, 8.0) nm"),
    ],
)
def test_validation_of_another_kind_than_training_is_refused(
    train: Refuse, put: Callable[..., str], change: tuple[Any, Any], told: str
) -> None:
    message = train(put("bad", *change), put("its-cells", mask(SHAPE), change[1]))
    assert told in message and "validation sections uint8 of (50.0, 4.0, 4.0) nm: the threshold would be" in message
    assert message.endswith("Give both from the same kind of volume.")


@pytest.mark.parametrize(
    ("voxels", "size", "told"),
    [
        (grey(SHAPE).astype(np.uint16), (50, 4, 4), "training volumes differ in dtype: uint16 and uint8."),
        (grey(SHAPE), (50, 8, 8), "training volumes differ in voxel_size_nm: (50.0, 4.0, 4.0) and (50.0, 8.0, 8.0)."),
    ],
)
def test_training_volumes_of_different_kinds_are_refused(
    put: Callable[..., str], voxels: NDArray[Any], size: tuple[float, float, float], told: str
) -> None:
    chosen = [
        AnnotatedSections(put("em", grey(SHAPE)), put("cells", mask(SHAPE))),
        AnnotatedSections(put("other", voxels, size), put("its-cells", mask(SHAPE), size)),
    ]
    with pytest.raises(ValueError, match=r"convert them to the same before ingest\.$") as refused:
        load_annotated(chosen, DataSettings(chosen, chosen))
    assert told in str(refused.value)


def test_training_without_validation_is_refused(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    learned = '[{"volume": "em", "labels": "cells"}]'
    told = refusal(capsys, home, "train", "--data.train", learned)
    assert "without held-out sections no threshold can be chosen. Try holding out the last 4" in told


def test_an_illegal_crop_names_the_nearest_legal_one(train: Refuse) -> None:
    message = train("em", "cells", "0-3", "--schedule.crop_px", "30")
    assert "schedule.crop_px: crop=30 px is illegal" in message and message.endswith("Try crop=32.")


# Sparse annotation


def _half_known(value: int, dtype: Any = np.uint8) -> NDArray[Any]:
    labels = mask(SHAPE).astype(dtype)
    labels[labels > 0] = 1
    labels[:, :, 20:] = value
    return labels


def test_a_declared_third_value_is_unknown_and_the_rest_is_as_before(put: Callable[..., str]) -> None:
    found = _load(put, _half_known(255), "1,4", unknown_label=255)
    for target in found.membrane:
        assert (target[:, 20:] == 255).all()
        np.testing.assert_array_equal(target[:, :20], mask(SHAPE)[0, :, :20] == 0)


def test_unknown_voxels_as_cremi_marks_them_are_read_by_the_same_setting(put: Callable[..., str]) -> None:
    instances = np.where(mask(SHAPE) > 0, np.arange(SHAPE[2]) // 8 + 1, 0).astype(np.uint64)
    instances[:, :, 20:] = 2**64 - 1
    chosen = [AnnotatedSections(put("em", grey(SHAPE)), put("ids", instances), "1")]
    for unknown in (None, "largest", 2**64 - 1):
        found = load_annotated(chosen, DataSettings(chosen, chosen, "instances", unknown_label=unknown))  # type: ignore[arg-type]
        np.testing.assert_array_equal(found.membrane[0][:, :20], mask(SHAPE)[0, :, :20] == 0)
        assert (found.membrane[0][:, 20:] == 255).all()


def test_another_third_value_than_declared_is_refused_with_its_count(train: Refuse, put: Callable[..., str]) -> None:
    labels = _half_known(255)
    labels[2, 5, 5:8] = 9
    told = train("em", put("bad", labels), "0-3", "--data.unknown_label", "255")
    assert (
        "hold the values 0 (656 px), 1 (1,901 px), " in told and "9 (3 px) besides 255, unknown: a mask has two" in told
    )
    told = train("em", put("other", _half_known(255)), "0-3", "--data.unknown_label", "254")
    assert "255 (2,560 px) besides 254, unknown" in told and "if a value means unknown, pass it as --data.unkn" in told


def test_a_section_without_annotation_is_left_out_aloud(
    put: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    labels = _half_known(255)
    labels[2] = 255
    with caplog.at_level(logging.WARNING, "tessera"):
        found = _load(put, labels, "1-3", unknown_label=255)
    assert found.names == ("em.zarr section 1", "em.zarr section 3")
    assert len(found.raw) == len(found.membrane) == 2
    assert np.array_equal(found.raw[1], grey(SHAPE)[3])
    assert caplog.messages == ["em.zarr section 2 is left out: every pixel of it has the label that means unknown"]


def test_volumes_without_any_annotation_are_refused(train: Refuse, put: Callable[..., str]) -> None:
    told = train("em", put("bad", np.full(SHAPE, 255, np.uint8)), "0-3", "--data.unknown_label", "255")
    assert "are unknown at every pixel of the chosen sections: nothing can be learned or scored." in told


def test_strokes_of_one_class_in_a_section_are_enough_to_learn_from(put: Callable[..., str]) -> None:
    labels = np.full(SHAPE, 255, np.uint8)
    labels[0, 4, :30], labels[1, 9, 3:9] = 0, 1
    found = _load(put, labels, "0-1", unknown_label=255)
    assert [sorted(np.unique(target)) for target in found.membrane] == [[1, 255], [0, 255]]


def test_a_held_out_section_without_a_known_cell_is_refused(train: Refuse, put: Callable[..., str]) -> None:
    labels = _half_known(255)
    labels[5] = 255
    labels[5, 3, 3] = 0
    held_out = json.dumps([{"volume": put("other", grey(SHAPE)), "labels": put("strokes", labels)}])
    told = train("em", put("known", _half_known(255)), "0-3", "--data.unknown_label", "255", validation=held_out)
    assert "no pixel of other.zarr section 5 is known to be cell: scores compare cells" in told
    assert told.endswith("Annotate some, or leave it out of data.validation.")


def test_zero_cannot_mean_unknown(train: Refuse) -> None:
    told = train("em", "cells", "0-3", "--data.unknown_label", "0")
    assert told.startswith("data.unknown_label=0: 0 is membrane already")
    assert told.endswith("Give unannotated pixels a value of their own, such as 255, and membrane 0.")
