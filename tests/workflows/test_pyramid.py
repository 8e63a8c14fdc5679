"""Pyramids: each level is the level above, coarser, where its metadata say; found only when it is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr

from ngff import validated_levels
from terminal import refusal, tessera
from tessera.engine.tasks import Process
from tessera.geometry.blocks import BlockGrid
from tessera.settings.pyramid import PyramidSettings
from tessera.storage.ledger import read_rows
from tessera.storage.volumes import create_volume, open_volume, update_attributes
from tessera.workflows import pyramid as workflow
from tessera.workflows.pyramid import pyramid
from volumes import grey, put_volume

Capsys = pytest.CaptureFixture[str]
SHAPE, SIZE = (5, 83, 121), (50.0, 8.0, 8.0)
# y and x catch up with z after three halvings.
SHAPES = [SHAPE, (5, 42, 61), (5, 21, 31), (5, 11, 16), (3, 6, 8)]
SIZES = [SIZE, (50.0, 16.0, 16.0), (50.0, 32.0, 32.0), (50.0, 64.0, 64.0), (100.0, 128.0, 128.0)]


def put(path: Path, voxels: np.ndarray, ome_zarr: Any = "0.5", **attributes: Any) -> Path:
    own = {"complete": True, "kind": "image", **attributes}
    shard = (2, 32, 32) if ome_zarr == "0.5" else None
    layout = {"chunk": (2, 16, 16), "shard": shard, "ome_zarr": ome_zarr}
    volume = create_volume(path, voxels.shape, voxels.dtype, voxel_size_nm=SIZE, attributes=own, **layout)
    for _, box in BlockGrid(voxels.shape, volume.shard).boxes():
        volume.write(box, voxels[box.slices])
    return path


def made(path: Path, levels: int | None = 4, **chosen: Any) -> list[np.ndarray]:
    pyramid(PyramidSettings(**{"engine": "serial"} | chosen, volume=str(path), levels=levels))
    return [open_volume(path, level=n).array[:] for n in range(len(open_volume(path).levels))]


def halved_by_dask(voxels: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """The level below, serially: what the last windows lack is NaN and does not count."""
    lacking = [(0, -n % f) for n, f in zip(voxels.shape, factors, strict=True)]
    whole = da.from_array(np.pad(voxels.astype(np.float64), lacking, constant_values=np.nan))
    means = da.coarsen(np.nanmean, whole, dict(enumerate(factors)))
    return np.asarray(da.rint(means).astype(voxels.dtype).compute())


@pytest.mark.parametrize("ome_zarr", ["0.4", "0.5"])
def test_levels_equal_serial_ones_and_their_metadata_validate(tmp_path: Path, ome_zarr: str) -> None:
    path = put(tmp_path / "em.zarr", grey(SHAPE), ome_zarr)
    levels = made(path)
    assert [level.shape for level in levels] == SHAPES
    for number in range(1, 5):
        factors = tuple(round(a / b) for a, b in zip(SIZES[number], SIZES[number - 1], strict=True))
        np.testing.assert_array_equal(levels[number], halved_by_dask(levels[number - 1], factors))
    assert [level.path for level in validated_levels(path)] == ["0", "1", "2", "3", "4"]
    assert [open_volume(path, level=number).voxel_size_nm for number in range(5)] == SIZES


def test_a_level_lies_where_its_voxels_came_from(tmp_path: Path) -> None:
    """A ramp along x tells where each voxel's centre was: its value is the coordinate."""
    x_nm = np.arange(120, dtype=np.float32) * 8.0
    path = put(tmp_path / "em.zarr", np.broadcast_to(x_nm, (2, 64, 120)).copy())
    for number, level in enumerate(made(path, 3)):
        volume = open_volume(path, level=number)
        assert volume.voxel_size_nm is not None
        start = (volume.translation_nm or (0.0, 0.0, 0.0))[2]
        expected = start + volume.voxel_size_nm[2] * np.arange(volume.shape[2])
        np.testing.assert_allclose(level[0, 0], expected)


def test_labels_keep_their_ids(tmp_path: Path) -> None:
    ids = np.array([0, 7, 2**60], np.uint64)[np.random.default_rng(0).integers(0, 3, (2, 40, 40))]
    path = put_volume(tmp_path / "cells.zarr", ids, kind="cells per section")
    for level in made(path, 2):
        assert set(np.unique(level)) <= {0, 7, 2**60} and level.dtype == np.uint64


def test_invalid_sections_stay_invalid_in_coarser_levels(tmp_path: Path) -> None:
    path = put(tmp_path / "em.zarr", grey(SHAPE), invalid_sections=[1, 4])
    made(path)
    assert [sorted(open_volume(path, level=n).invalid_sections) for n in (0, 3, 4)] == [[1, 4], [1, 4], [0, 2]]


def test_a_killed_pyramid_is_not_seen_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = put(tmp_path / "em.zarr", grey(SHAPE)), put(tmp_path / "whole.zarr", grey(SHAPE))
    real, calls = workflow._make_worker, [0]

    def dying(plan: workflow.PyramidPlan) -> Process:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return real(plan)

    monkeypatch.setattr(workflow, "_make_worker", dying)
    with pytest.raises(KeyboardInterrupt):
        made(path)
    assert len(open_volume(path).levels) == 1
    first = len(list(read_rows(path, stage="level_1")))
    assert first > 0
    for ours, undisturbed in zip(made(path), made(whole), strict=True):
        np.testing.assert_array_equal(ours, undisturbed)
    assert len(list(read_rows(path, stage="level_1"))) == first


def test_a_changed_volume_is_not_given_its_old_levels(tmp_path: Path, home: Path, capsys: Capsys) -> None:
    path = put(tmp_path / "em.zarr", grey(SHAPE))
    made(path)
    volume = open_volume(path, writable=True)
    for _, box in BlockGrid(SHAPE, volume.shard).boxes():
        volume.write(box, grey(SHAPE, seed=9)[box.slices])
    words = ("pyramid", "--volume", path, "--levels", "4", "--engine", "serial")
    assert "belongs to another job: finest was" in refusal(capsys, home, *words)
    assert tessera(capsys, *words, "--overwrite", "true").out == f"{path}\n"
    np.testing.assert_array_equal(open_volume(path, level=1).array[:], halved_by_dask(grey(SHAPE, seed=9), (1, 2, 2)))


def test_what_has_no_pyramid_is_refused(tmp_path: Path, home: Path, capsys: Capsys) -> None:
    foreign = tmp_path / "foreign.zarr"
    zarr.create_array(foreign, shape=(2, 8, 8), dtype="u1")
    sizeless = tmp_path / "sizeless.zarr"
    create_volume(sizeless, (2, 8, 8), np.uint8, voxel_size_nm=None, attributes={"complete": True})
    half = put(tmp_path / "half.zarr", grey((2, 32, 32)))
    update_attributes(half, complete=False)
    for path, message in (
        (foreign, "was not made by tessera: it is left as it is"),
        (sizeless, "has no voxel size: which axes are coarser"),
        (half, "is only half-written"),
    ):
        assert message in refusal(capsys, home, "pyramid", "--volume", path, "--engine", "serial")
    few = refusal(capsys, home, "pyramid", "--volume", put(tmp_path / "a.zarr", grey((2, 16, 16))), "--levels", "9")
    assert "has 4 coarser levels at most" in few
