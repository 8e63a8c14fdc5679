"""Cleaned labels are those of cleaning the whole volume, after kills too; objects are listed as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from terminal import refusal, tessera
from tessera.settings.clean import CleanSettings
from tessera.settings.objects import ObjectsSettings
from tessera.settings.view import ViewSettings
from tessera.storage.volumes import open_volume
from tessera.workflows import clean as workflow
from tessera.workflows.clean import clean
from tessera.workflows.objects import objects
from tessera.workflows.scene import find_scene
from volumes import grey, put_volume

SHAPE = (20, 48, 64)
CUT: dict[str, Any] = {"chunk": (4, 16, 16), "shard": (8, 16, 32), "engine": "serial", "attempts": 1}
Capsys = pytest.CaptureFixture[str]


def _cells() -> NDArray[np.uint64]:
    """Large objects with cavities across blocks, tunnels, and specks, one of them inside a cavity."""
    cells = np.zeros(SHAPE, np.uint64)
    cells[:, :30, :40], cells[2:18, 32:46, 4:60], cells[:, :30, 42:] = 2**40 + 1, 2**40 + 2, 7
    cells[3:15, 8:20, 6:38] = 0  # a cavity of 1
    cells[9, 12, 20] = 99  # a speck in it
    cells[:, 5, 50] = 0  # a tunnel through 7
    cells[6, 40, 50:52] = 0  # a small hole of 2
    cells[0, 47, 63], cells[19, 46:48, 62] = 5, 6
    return cells


@pytest.fixture
def volumes(home: Path) -> Path:
    folder = home / "volumes"
    put_volume(folder / "raw.zarr", grey(SHAPE))
    put_volume(folder / "p.zarr", grey(SHAPE), kind="membrane probability", input=str(folder / "raw.zarr"))
    put_volume(folder / "cells.zarr", _cells(), kind="cells", input=str(folder / "p.zarr"))
    return folder


def _voxels(place: Any) -> NDArray[np.uint64]:
    voxels: NDArray[np.uint64] = open_volume(place).array[:]
    return voxels


def _expected() -> NDArray[np.uint64]:
    expected = _cells()
    expected[np.isin(expected, (5, 6, 99))] = 0
    for name in (2**40 + 1, 2**40 + 2):
        expected[ndimage.binary_fill_holes(expected == name)] = name
    return expected


def test_specks_go_and_holes_are_filled_across_blocks(volumes: Path) -> None:
    place = clean(CleanSettings("cells", "c", least_voxels=3, fill_holes="volume", **CUT))
    found = open_volume(place)
    np.testing.assert_array_equal(_voxels(place), _expected())
    told = {name: found.attributes[name] for name in ("objects_removed", "objects_left", "holes_filled", "hole_voxels")}
    assert told == {"objects_removed": 3, "objects_left": 3, "holes_filled": 2, "hole_voxels": 12 * 12 * 32 + 2}
    assert (found.attributes["kind"], found.attributes["input"]) == ("cells", str(volumes / "cells.zarr"))
    assert [layer.kind for layer in find_scene(ViewSettings("c")).layers] == ["labels", "probability", "raw"]


def test_on_ray_the_volume_is_the_same(volumes: Path, ray_session: None) -> None:
    cut = {**CUT, "engine": "ray", "workers": 2}
    place = clean(CleanSettings("cells", "c", least_voxels=3, fill_holes="volume", **cut))
    np.testing.assert_array_equal(_voxels(place), _expected())


def test_sections_are_filled_each_by_itself(volumes: Path) -> None:
    place = clean(CleanSettings("cells", "c", fill_holes="section", **CUT))
    expected = _cells()
    expected[:, 5, 50] = 7
    expected[6, 40, 50:52] = 2**40 + 2
    for z in range(3, 15):
        if z != 9:  # there the speck is a second object beside the cavity
            expected[z, 8:20, 6:38] = 2**40 + 1
    np.testing.assert_array_equal(_voxels(place), expected)


def test_what_was_never_predicted_is_no_hole(volumes: Path) -> None:
    put_volume(volumes / "gap.zarr", _cells(), kind="cells", invalid_sections=[6])
    place = clean(CleanSettings("gap", "c", least_voxels=3, fill_holes="volume", **CUT))
    expected = _expected()
    expected[3:15, 8:20, 6:38] = 0
    expected[6, 40, 50:52] = 0
    np.testing.assert_array_equal(_voxels(place), expected)


@pytest.mark.parametrize("stage", ["make_lister", "make_finder", "make_writer"])
def test_a_killed_job_goes_on_where_it_stopped(volumes: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    settings = CleanSettings("cells", "c", least_voxels=3, fill_holes="volume", **CUT)
    real, calls = getattr(workflow, stage), list[Any]()

    def counting(limit: int | None) -> Any:
        def made(*arguments: Any) -> Any:
            process = real(*arguments)

            def one(item: Any) -> Any:
                if limit is not None and len(calls) >= limit:
                    raise KeyboardInterrupt
                calls.append(item)
                return process(item)

            return one

        return made

    monkeypatch.setattr(workflow, stage, counting(7))
    with pytest.raises(KeyboardInterrupt):
        clean(settings)
    monkeypatch.setattr(workflow, stage, counting(None))
    np.testing.assert_array_equal(_voxels(clean(settings)), _expected())
    assert len(calls) == 3 * 3 * 2, "no block was done twice"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "neither small objects nor holes are to go: the output would be a copy."),
        (("--least_voxels", "-1"), "least_voxels=-1 is no size"),
        (("--volume", "p", "--least_voxels", "9"), "holds membrane probability of uint8"),
        (("--output", "cells", "--least_voxels", "9"), "is the input itself"),
    ],
)
def test_what_cannot_be_cleaned_is_refused(
    capsys: Capsys, home: Path, volumes: Path, words: tuple[str, ...], told: str
) -> None:
    given = ["clean", "--volume", "cells", "--output", "c", "--engine", "serial", *words]
    assert told in refusal(capsys, home, *given)


# Objects


def test_the_table_lists_each_object_with_its_place(capsys: Capsys, volumes: Path) -> None:
    put_volume(volumes / "placed.zarr", _cells(), translation_nm=(100, 0, 40), kind="cells")
    answer = tessera(capsys, "objects", "placed", "--engine", "serial")
    assert answer.code == 0, answer.err
    place = volumes / "placed.objects.parquet"
    assert answer.out.strip() == str(place)
    table, cells = pq.read_table(place).to_pydict(), _cells()
    assert table["id"] == [5, 6, 7, 99, 2**40 + 1, 2**40 + 2]
    for i, name in enumerate(table["id"]):
        at = np.argwhere(cells == np.uint64(name))
        assert table["voxels"][i] == len(at)
        assert [table[f"{axis}_start"][i] for axis in "zyx"] == at.min(axis=0).tolist()
        assert [table[f"{axis}_stop"][i] for axis in "zyx"] == (at.max(axis=0) + 1).tolist()
        centre = at.mean(axis=0) * (50, 4, 4) + (100, 0, 40)
        assert [table[f"{axis}_nm"][i] for axis in "zyx"] == pytest.approx(centre.tolist())
    assert table["touches_border"] == [True, True, True, False, True, False]


def test_a_table_may_go_elsewhere_and_grey_values_are_no_objects(volumes: Path, tmp_path: Path) -> None:
    place = objects(ObjectsSettings("cells", str(tmp_path / "t.parquet"), engine="serial"))
    assert place == tmp_path / "t.parquet" and pq.read_table(place).num_rows == 6
    put_volume(volumes / "grey.zarr", grey(SHAPE), kind="image")
    with pytest.raises(ValueError, match=r"grey\.zarr holds image of uint8 and shape .*objects have unsigned ids"):
        objects(ObjectsSettings("grey"))
