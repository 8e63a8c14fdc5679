"""Promises about which data it was: fingerprints follow voxels, identities follow files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from tessera.geometry.boxes import Box
from tessera.storage.identity import fingerprint, identity
from tessera.storage.volumes import Volume, create_volume, open_volume, update_attributes

SHAPE = (9, 16, 16)
VOXELS = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


def stored(path: Path, voxels: np.ndarray = VOXELS, chunk: tuple[int, ...] = (2, 8, 8)) -> Volume:
    volume = create_volume(path, voxels.shape, voxels.dtype, voxel_size_nm=(50, 4, 4), chunk=chunk, shard=chunk)
    volume.write(Box.whole(volume.shape), voxels)
    return open_volume(path)


def test_a_fingerprint_depends_on_voxels_and_not_on_how_they_are_stored(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "v2.zarr", shape=SHAPE, chunks=(3, 5, 7), dtype="u1", zarr_format=2)
    array[:] = VOXELS
    prints = {
        fingerprint(stored(tmp_path / "a.zarr")),
        fingerprint(stored(tmp_path / "b.zarr", chunk=(9, 16, 16))),
        fingerprint(open_volume(tmp_path / "v2.zarr")),
    }
    assert len(prints) == 1


def test_a_fingerprint_changes_with_one_voxel_the_dtype_or_the_boxes(tmp_path: Path) -> None:
    changed = VOXELS.copy()
    changed[8, 15, 15] ^= 1
    volume = stored(tmp_path / "a.zarr")
    boxes = [Box((0, 0, 0), (4, 16, 16)), Box((4, 0, 0), (9, 16, 16))]
    prints = [
        fingerprint(volume),
        fingerprint(stored(tmp_path / "b.zarr", changed)),
        fingerprint(stored(tmp_path / "c.zarr", VOXELS.astype(np.uint16))),
        fingerprint(volume, boxes),
        fingerprint(volume, boxes[::-1]),
        fingerprint(volume, boxes[:1]),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint(volume, [Box.whole(SHAPE)]) == prints[0]


def test_channels_are_fingerprinted_in_storage_order(tmp_path: Path) -> None:
    both = np.stack([VOXELS, VOXELS[::-1]])
    first = stored(tmp_path / "a.zarr", both, (1, 2, 8, 8))
    other = stored(tmp_path / "b.zarr", both, (2, 9, 16, 16))
    assert fingerprint(first) == fingerprint(other)
    assert fingerprint(first) != fingerprint(stored(tmp_path / "c.zarr", both[::-1], (1, 2, 8, 8)))


def test_a_box_outside_the_volume_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mirror what lies outside"):
        fingerprint(stored(tmp_path / "a.zarr"), [Box((0, 0, 0), (10, 16, 16))])


def test_an_identity_is_the_same_at_each_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = identity(stored(tmp_path / "a.zarr"))
    monkeypatch.chdir(tmp_path)
    assert identity(open_volume("a.zarr")) == first
    update_attributes("a.zarr", run="r1")
    assert identity(open_volume("a.zarr")) == first


def test_an_identity_changes_when_the_volume_does(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    stored(path)
    shard = path / "0" / "c" / "1" / "1" / "0"
    seen = [identity(open_volume(path))]
    os.utime(shard, ns=(1, 1))
    seen.append(identity(open_volume(path)))
    shard.unlink()
    seen.append(identity(open_volume(path)))
    update_attributes(path, invalid_sections=[3])
    seen.append(identity(open_volume(path)))
    shutil.copytree(path, tmp_path / "b.zarr", copy_function=shutil.copy2)
    seen.append(identity(open_volume(tmp_path / "b.zarr")))
    assert len(set(seen)) == len(seen)


def test_an_identity_looks_at_64_files_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = create_volume(
        tmp_path / "a.zarr", (4000, 40_000, 40_000), np.uint8, voxel_size_nm=(50, 4, 4), shard=(16, 256, 256)
    )
    looked: list[str] = []
    from tessera.storage import identity as module

    monkeypatch.setattr(module, "stamp", lambda path: looked.append(str(path)))
    identity(volume)
    identity(volume)
    assert len(looked) == 128 and set(looked[:64]) == set(looked[64:]) and len(set(looked)) == 64


def test_version_2_chunks_are_looked_at_too(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, chunks=(3, 8, 8), dtype="u1", zarr_format=2)[:] = VOXELS
    first = identity(open_volume(tmp_path / "a.zarr"))
    os.utime(tmp_path / "a.zarr" / "2.1.0", ns=(1, 1))
    assert identity(open_volume(tmp_path / "a.zarr")) != first
