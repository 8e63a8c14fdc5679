"""Promises about which chunks are stored: told without reading one, however a volume names and packs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

from objectstore import BUCKET, S3Server
from tessera.geometry.boxes import Box
from tessera.storage import stored as module
from tessera.storage.locations import Url, place_of
from tessera.storage.stored import digest_of_stored, stored_chunks
from tessera.storage.volumes import Volume, create_volume, open_volume

SHAPE, CHUNK = (9, 20, 22), (2, 4, 5)
COUNTS = (5, 5, 5)
KINDS: dict[str, dict[str, Any]] = {
    "version 2, flat names": {"zarr_format": 2, "chunks": CHUNK},
    "version 2, folders": {"zarr_format": 2, "chunks": CHUNK, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "version 3": {"chunks": CHUNK},
    "version 3, flat names": {"chunks": CHUNK, "chunk_key_encoding": {"name": "default", "separator": "."}},
    "shards": {"chunks": CHUNK, "shards": (4, 8, 10)},
    "shards, index first": {"chunks": CHUNK, "shards": {"shape": (4, 8, 10), "index_location": "start"}},
}


def flags(seed: int = 0) -> np.ndarray:
    """A quarter of the chunks; none of sections 4 and 5."""
    chosen = np.random.default_rng(seed).random(COUNTS) < 0.25
    chosen[2] = False
    return chosen


def voxels_of(chosen: np.ndarray) -> np.ndarray:
    """Ones in chosen chunks: all that is not stored reads as 0."""
    whole = chosen
    for axis, extent in enumerate(CHUNK):
        whole = np.repeat(whole, extent, axis=axis)
    return whole[tuple(slice(0, n) for n in SHAPE)].astype(np.uint8)


def put(store: Any, **kind: Any) -> np.ndarray:
    """Write some chunks into a plain array; which ones."""
    chosen = flags()
    array = zarr.create_array(store, shape=SHAPE, dtype="uint8", **kind)
    array[:] = voxels_of(chosen)
    return chosen


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_every_stored_chunk_is_found_and_no_other(kind: dict[str, Any], tmp_path: Path) -> None:
    chosen = put(tmp_path / "a.zarr", **kind)
    found = stored_chunks(open_volume(tmp_path / "a.zarr"), Box.whole(SHAPE))
    np.testing.assert_array_equal(found.stored, chosen)
    assert (found.chunk, found.first, found.complete) == (CHUNK, (0, 0, 0), False)
    assert found.sections_without(range(9)) == {4, 5}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_a_region_is_told_of_its_own_chunks_alone(kind: dict[str, Any], tmp_path: Path) -> None:
    chosen = put(tmp_path / "a.zarr", **kind)
    region = Box((3, 7, 5), (8, 13, 16))
    found = stored_chunks(open_volume(tmp_path / "a.zarr"), region)
    assert found.first == (1, 1, 1)
    np.testing.assert_array_equal(found.stored, chosen[1:4, 1:4, 1:4])
    np.testing.assert_array_equal(found.of(region), voxels_of(chosen)[region.slices] == 1)


@pytest.mark.parametrize("kind", ["version 2, flat names", "version 3", "shards"])
@pytest.mark.parametrize("few", [0, 256])
def test_in_an_object_store_listing_and_asking_find_the_same(
    kind: str, few: int, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tessera.storage.stores import store_for

    url = f"s3://{BUCKET}/em/{few}.zarr"
    chosen = put(store_for(url, writable=True), **KINDS[kind])
    monkeypatch.setattr(module, "_FEW_OBJECTS", few)
    found = stored_chunks(open_volume(url), Box.whole(SHAPE))
    np.testing.assert_array_equal(found.stored, chosen)


def test_a_web_server_that_lists_nothing_is_asked_or_counts_as_complete(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tessera.storage.stores import store_for

    chosen = put(store_for(f"s3://{BUCKET}/em/web.zarr", writable=True), **KINDS["version 3"])
    s3.publish("em/web.zarr")
    volume = open_volume(f"{s3.endpoint}/{BUCKET}/em/web.zarr")
    assert isinstance(volume.place, Url) and not volume.place.writable
    np.testing.assert_array_equal(stored_chunks(volume, Box.whole(SHAPE)).stored, chosen)
    monkeypatch.setattr(module, "_FEW_OBJECTS", 0)
    monkeypatch.setattr(module, "_MOST_ASKED", 10)
    assert stored_chunks(volume, Box.whole(SHAPE)).complete
    assert "lists nothing: all 125 objects of it count as stored" in caplog.text


def test_a_bucket_that_may_be_read_but_not_listed_counts_as_complete(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tessera.storage.stores import store_for

    put(store_for(f"s3://{BUCKET}/em/public.zarr", writable=True), **KINDS["version 3"])
    s3.publish("em/public.zarr")
    volume = open_volume(place_of(f"s3://{BUCKET}/em/public.zarr", anonymous=True))
    monkeypatch.setattr(module, "_FEW_OBJECTS", 0)

    def refuse(*_: object) -> list[str]:  # the server here lets everyone list
        raise PermissionError("the store refuses access")

    monkeypatch.setattr(module, "list_below", refuse)
    assert stored_chunks(volume, Box.whole(SHAPE)).complete
    assert "all 125 objects of it count as stored" in caplog.text and "refuses access" in caplog.text


def test_a_damaged_index_counts_as_complete_so_that_reading_it_fails(tmp_path: Path) -> None:
    put(tmp_path / "a.zarr", **KINDS["shards"])
    shard = next(path for path in sorted((tmp_path / "a.zarr" / "c").rglob("*")) if path.is_file())
    shard.write_bytes(b"cut")
    volume = open_volume(tmp_path / "a.zarr")
    place = tuple(int(part) for part in shard.relative_to(tmp_path / "a.zarr" / "c").parts)
    start = tuple(i * n for i, n in zip(place, (4, 8, 10), strict=True))
    box = Box(start, tuple(a + n for a, n in zip(start, (4, 8, 10), strict=True))).clipped(Box.whole(SHAPE))
    assert stored_chunks(volume, box).complete
    with pytest.raises(Exception, match=r".+"):
        volume.read(box)


def test_an_index_of_another_encoding_is_not_guessed_at(tmp_path: Path) -> None:
    codec = ShardingCodec(chunk_shape=CHUNK, index_codecs=[BytesCodec(endian="big"), Crc32cCodec()])
    chosen = flags()
    array = zarr.create(
        store=str(tmp_path / "a.zarr"), shape=SHAPE, chunks=(4, 8, 10), dtype="uint8", codecs=[codec], zarr_format=3
    )
    array[:] = voxels_of(chosen)
    found = stored_chunks(open_volume(tmp_path / "a.zarr"), Box.whole(SHAPE))
    assert not (chosen & ~found.stored).any(), "a shard that is there counts whole"


def test_the_digest_of_what_is_stored_follows_chunks_and_their_files(tmp_path: Path) -> None:
    def digest(volume: Volume) -> str:
        return digest_of_stored(volume, stored_chunks(volume, Box.whole(volume.shape)))

    layout = {"chunk": (4, 8, 8), "shard": (4, 16, 16)}
    volume = create_volume(tmp_path / "a.zarr", (8, 32, 32), np.uint8, voxel_size_nm=(50, 4, 4), **layout)
    box = Box((0, 0, 0), (4, 16, 16))
    voxels = np.zeros(box.shape, np.uint8)
    voxels[:, :8, :8] = 7
    volume.write(box, voxels)
    seen = [digest(volume), digest(volume)]
    assert seen[0] == seen[1]
    voxels[:, 8:, 8:] = 7
    volume.write(box, voxels)
    seen.append(digest(volume))
    voxels[0, 0, 0] = 9
    volume.write(box, voxels)
    seen.append(digest(volume))
    volume.write(box.shifted((4, 0, 0)), voxels)
    seen.append(digest(volume))
    assert len(set(seen)) == 4
