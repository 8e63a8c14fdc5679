"""A sparse volume of 8 TiB: planned in seconds, and predicted end to end at the cost of what is stored.

    python tests/benchmarks/sparse_volume.py               131,072 blocks of 64 x 1024 x 1024, 1% holding a few chunks
    python tests/benchmarks/sparse_volume.py --part 64     the same in every way but for a 64th of the blocks

A raw volume of which 1 block in 100, scattered by a seed, holds one to three stored chunks of 16 x 256 x 256; the rest
are nowhere. Planning, from settings to an output that is claimed, runs in a process of its own, whose peak memory is
that of planning. Then `tessera predict` runs to the end with a tiny network, serially. Prints the table, keeps
results/sparse_volume.json, exits with 1 where an aim is missed. The volume takes next to no disk: what is stored
repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from pairs import estimate
from report import Aim, Outcome, tell

from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.settings.predict import PredictSettings
from tessera.storage.volumes import create_volume, open_volume

MINUTES = 40
SEED, STORED_SHARE, TEMPLATES = 2012, 0.01, 8


@dataclass(frozen=True)
class Size:
    """Extents of the volume.

    Attributes:
      counts: blocks along z, y, x.
      shard: voxels of a block, which is one shard.
      chunk: voxels of a chunk.
    """

    counts: tuple[int, int, int]
    shard: tuple[int, int, int] = (64, 1024, 1024)
    chunk: tuple[int, int, int] = (16, 256, 256)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels."""
        return tuple(n * s for n, s in zip(self.counts, self.shard, strict=True))


WHOLE = Size((64, 32, 64))


def part_of(size: Size, part: int) -> Size:
    """The volume with fewer blocks along z, and then y.

    >>> part_of(WHOLE, 64).counts
    (1, 32, 64)
    """
    z = max(1, size.counts[0] // part)
    y = max(1, size.counts[1] // max(1, part // size.counts[0]))
    return Size((z, y, size.counts[2]), size.shard, size.chunk)


def make_volume(path: Path, size: Size) -> int:
    """Create the raw volume; returns how many blocks hold anything."""
    volume = create_volume(
        path,
        size.shape,
        np.uint8,
        voxel_size_nm=(50, 4, 4),
        chunk=size.chunk,
        shard=size.shard,
        attributes={"complete": True},
    )
    grid, rng = BlockGrid(size.shape, size.shard), np.random.default_rng(SEED)
    chosen = rng.choice(len(grid), max(1, round(len(grid) * STORED_SHARE)), replace=False)
    with tempfile.TemporaryDirectory() as made:
        templates = [_template(Path(made) / f"{k}.zarr", size, k) for k in range(TEMPLATES)]
        for block in chosen:
            # A shard's file does not say where it lies: copies of a few stand for all.
            to = path / "0" / volume.array.metadata.encode_chunk_key(grid.position(int(block)))
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(templates[int(block) % TEMPLATES], to)
    return len(chosen)


def _template(path: Path, size: Size, seed: int) -> Path:
    """The file of a shard of which one to three chunks are stored."""
    volume = create_volume(path, size.shard, np.uint8, voxel_size_nm=(50, 4, 4), chunk=size.chunk, shard=size.shard)
    rng, chunks = np.random.default_rng(seed), BlockGrid(size.shard, size.chunk)
    voxels = np.zeros(size.shard, np.uint8)
    patch = rng.integers(1, 255, (1, 32, 32), dtype=np.uint8)
    for index in rng.choice(len(chunks), 1 + seed % 3, replace=False):
        box = chunks.box(int(index))
        voxels[box.slices] = np.tile(patch, [n // p for n, p in zip(box.shape, patch.shape, strict=True)])
    volume.write(Box.whole(size.shard), voxels)
    return path / "0" / volume.array.metadata.encode_chunk_key((0, 0, 0))


def make_bundle(folder: Path) -> None:
    """A real bundle with a network that costs next to nothing."""
    from tessera.images.normalise import Normalisation
    from tessera.model.bundle import Contract, save_bundle
    from tessera.model.spec import UnetSpec
    from tessera.model.unet import build_unet

    spec = UnetSpec(filters=1, depth=1, padding="valid")
    rule = Normalisation("global", 128.0, 60.0)
    save_bundle(folder, build_unet(spec, seed=3), Contract(spec, rule, "uint8", (50.0, 4.0, 4.0), threshold=0.5))


def settings_of(folder: Path, **changes: Any) -> PredictSettings:
    """What the prediction is asked for."""
    chosen: dict[str, Any] = {"engine": "serial", "tile": (1, 256, 256), **changes}
    return PredictSettings(str(folder / "raw.zarr"), str(folder / "bundle"), str(folder / "out.zarr"), **chosen)


def plan(folder: Path, **changes: Any) -> dict[str, float]:
    """Plan and claim the output; seconds, blocks, and this process's peak memory."""
    from tessera.workflows.models import find_model
    from tessera.workflows.outputs import claimed_output
    from tessera.workflows.predict import plan_prediction

    since = time.perf_counter()
    settings = settings_of(folder, **changes)
    planned, output = plan_prediction(settings, find_model(settings.model, settings.tracking.uri))
    with claimed_output(output, settings):
        pass
    seconds = time.perf_counter() - since
    candidates = int(planned.validity.candidates(output.grid).sum())
    return {"seconds": seconds, "blocks": len(output.grid), "candidates": candidates, "peak_gib": _peak_gib()}


def run(folder: Path, **changes: Any) -> dict[str, float]:
    """Predict the volume; seconds, and what the ledger and the disk hold in the end."""
    from tessera.storage.ledger import read_rows
    from tessera.workflows.predict import predict

    since = time.perf_counter()
    out = predict(settings_of(folder, **changes))
    seconds = time.perf_counter() - since
    rows = list(read_rows(out))
    shards = [path for path in (folder / "out.zarr" / "0" / "c").rglob("*") if path.is_file()]
    return {
        "seconds": seconds,
        "done": sum(row.status == "done" for row in rows),
        "skipped": sum(bool(row.values.get("skipped")) for row in rows),
        "shards": len(shards),
        "valid_voxels": _valid_voxels(folder),
        "peak_gib": _peak_gib(),
    }


def _valid_voxels(folder: Path) -> int:
    """Voxels that the output marks valid, counted in the chunks that it stores."""
    from tessera.storage.stored import stored_chunks
    from tessera.storage.validity import open_validity

    mask = open_validity(open_volume(folder / "out.zarr"))
    assert mask is not None, "most of the volume is not valid"
    stored = stored_chunks(mask, Box.whole(mask.shape))
    boxes = (np.argwhere(stored.stored) * np.array(mask.chunk)).tolist()
    chunk = mask.chunk
    return sum(int(mask.read(Box(tuple(a), tuple(i + n for i, n in zip(a, chunk, strict=True)))).sum()) for a in boxes)


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _child(step: str, folder: Path) -> dict[str, float]:
    """One step in a process of its own: its peak memory is that of nothing else."""
    words = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{step} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(size: Size) -> Outcome:
    """Make the volume, plan and predict it."""
    facts = machine()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        folder = Path(made)
        os.environ["TESSERA_HOME"] = str(folder / "home")
        stored = make_volume(folder / "raw.zarr", size)
        _child("bundle", folder)
        planning, running = _child("plan", folder), _child("run", folder)
    blocks = prod(size.counts)
    if running["done"] != blocks or running["skipped"] != blocks - stored or running["shards"] != stored:
        raise RuntimeError(f"{blocks} blocks, {stored} of them with chunks, but the job says {running}")
    figures = {
        "blocks": blocks,
        "blocks with stored chunks": stored,
        "planning, seconds": planning["seconds"],
        "planning, peak memory, GiB": planning["peak_gib"],
        "whole job, seconds": running["seconds"],
        "whole job, peak memory, GiB": running["peak_gib"],
        "whole job, blocks per second": blocks / running["seconds"],
        "whole job, seconds per block with stored chunks": running["seconds"] / stored,
        "valid voxels": running["valid_voxels"],
    }
    estimates = {name: estimate([float(value)]) for name, value in figures.items()}
    aims = [
        Aim("planning, seconds", estimates["planning, seconds"], "<=", 10.0),
        Aim("planning, peak memory, GiB", estimates["planning, peak memory, GiB"], "<=", 1.0),
    ]
    what = (
        f"A volume of {prod(size.shape) / 2**40:g} TiB of which 1% of {blocks} blocks hold one to three stored chunks"
    )
    notes = ["serial, a network of one filter; single runs"]
    return Outcome("sparse_volume", what, facts, estimates, aims, notes=notes)


STEPS = {"plan": plan, "run": run}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--part", type=int, default=1, help="one part in so many; only the whole is kept as a result")
    parser.add_argument("--step", choices=["bundle", *STEPS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.step == "bundle":
        make_bundle(chosen.folder / "bundle")
        print("{}")
        return 0
    if chosen.step:
        print(json.dumps(STEPS[chosen.step](chosen.folder)))
        return 0
    outcome = measured(part_of(WHOLE, chosen.part))
    if chosen.part == 1:
        return tell(outcome)
    print(outcome.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
