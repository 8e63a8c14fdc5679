"""Block jobs whose workers, nodes and driver are killed: the output is the one that nobody disturbed.

A few kills with a cheap predictor, then many with a real network: both in soak, for nodes of a Ray cluster start within
half a minute or not at all, which a busy machine does not manage.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

import mortal_job
from bundles import make_bundle
from mortal import KINDS, assert_as_if_undisturbed, cluster_of, disturb
from tessera.storage.volumes import open_volume
from volumes import grey, put_volume

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "kills.json"
SHAPE, BLOCK = (16, 1024, 1024), [2, 128, 128]


@pytest.mark.slow
def test_a_worker_a_node_and_the_driver_are_killed_and_another_interrupted_and_nothing_is_lost(home: Path) -> None:
    raw = put_volume(home / "raw.zarr", grey(mortal_job.SHAPE))
    output, rng = home / "out.zarr", np.random.default_rng(7)
    command = [mortal_job.__file__, str(raw), str(output), "2"]
    with cluster_of(1) as nodes:
        # The node last: while another one starts, the job goes on, and might end before the next kill.
        kinds = [*map(str, rng.permutation(["worker", "driver", "ctrl-c"])), "node"]
        kills = disturb(command, output, nodes, kinds, rng, most=8)
    assert [kill.kind for kill in kills] == kinds
    assert kills[-1].committed > 0, "something could have been computed again"
    assert_as_if_undisturbed(output, mortal_job.oracle(grey(mortal_job.SHAPE)))


def _predict_command(home: Path, bundle: Path, output: Path) -> list[str]:
    """The real thing, with tiles so small that a block takes about a second."""
    volume = ["--volume", str(home / "raw.zarr"), "--model", str(bundle), "--output", str(output)]
    sizes = ["--tile", "[1, 16, 16]", "--shard", json.dumps(BLOCK), "--chunk", "[1, 64, 64]"]
    return ["-m", "tessera.cli", "predict", *volume, *sizes, "--workers", "2", "--attempts", "5"]


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
def test_a_prediction_outlives_many_kills_of_each_kind(home: Path) -> None:
    """Ten kills each of a worker, a node and the driver at seeded random blocks; the figures go to a file.

    TESSERA_SOAK_KILLS sets another number per kind.
    """
    rounds = int(os.environ.get("TESSERA_SOAK_KILLS", "10"))
    bundle, rng, begun = make_bundle(home / "bundle"), np.random.default_rng(7), perf_counter()
    put_volume(home / "raw.zarr", grey(SHAPE))
    quiet, output = home / "quiet.zarr", home / "out.zarr"
    kinds = [str(kind) for kind in rng.permutation(KINDS * rounds)]
    with cluster_of(2) as nodes:
        disturb(_predict_command(home, bundle, quiet), quiet, nodes, [], rng, most=1)
        kills = disturb(_predict_command(home, bundle, output), output, nodes, kinds, rng, most=10)
    assert len(kills) == len(kinds)
    assert_as_if_undisturbed(output, open_volume(quiet).array[:])
    _write_results([asdict(kill) for kill in kills], perf_counter() - begun)


def _write_results(kills: list[dict[str, object]], seconds: float) -> None:
    sys.path.append(str(RESULTS.parents[1]))
    from machine import commit, machine

    content = {
        "what": "tessera predict on a local cluster of three nodes, with SIGKILL at seeded random blocks",
        "command": "make soak",
        "commit": commit(),
        "machine": machine(),
        "blocks": int(np.prod([n // b for n, b in zip(SHAPE, BLOCK, strict=True)])),
        "seconds": round(seconds),
        "kills": kills,
        "committed_blocks_computed_again": 0,
        "torn_chunks": 0,
        "voxels_that_differ": 0,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
