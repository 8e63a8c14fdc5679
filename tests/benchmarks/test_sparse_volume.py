"""The sparse benchmark in small: as many blocks as a 64th of it, each of fewer voxels."""

from __future__ import annotations

from pathlib import Path

import pytest
from sparse_volume import WHOLE, Size, make_bundle, make_volume, part_of, plan, run


def test_a_sparse_volume_costs_what_is_stored_and_every_block_has_its_row(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = Size((16, 8, 16), shard=(8, 64, 64), chunk=(4, 32, 32))
    stored = make_volume(tmp_path / "raw.zarr", size)
    make_bundle(tmp_path / "bundle")
    layout = {"shard": size.shard, "chunk": size.chunk, "block": size.shard, "tile": (1, 32, 32)}
    planned = plan(tmp_path, **layout)
    assert (planned["blocks"], planned["candidates"], stored) == (2048, 20, 20)
    found = run(tmp_path, **layout)
    assert (found["done"], found["skipped"], found["shards"]) == (2048, 2028, 20)
    chunks = found["valid_voxels"] / (4 * 32 * 32)
    assert 20 < chunks < 60 and chunks == int(chunks), "one to three whole chunks in each"


def test_a_part_has_fewer_blocks_and_the_same_extents_of_each() -> None:
    part = part_of(WHOLE, 64)
    assert part.counts[0] * part.counts[1] * part.counts[2] == 131_072 // 64
    assert (part.shard, part.chunk) == (WHOLE.shard, WHOLE.chunk)
    assert part_of(WHOLE, 1) == WHOLE
