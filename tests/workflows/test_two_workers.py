"""Two training workers do what one does: the same network from the same samples, in real processes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tessera.engine.train import TrainGroup, rank_and_world, report, run_group
from tessera.images.normalise import Normalisation
from tessera.model.bundle import Contract
from tessera.model.losses import UNKNOWN
from tessera.model.optimiser import OptimiserSpec
from tessera.model.spec import UnetSpec
from tessera.model.training import STATE, FitPlan, Snapshot, fit

SPEC = UnetSpec(filters=3, depth=1, padding="same", batch_norm=True, dropout=0.0)
CONTRACT = Contract(SPEC, Normalisation("global", 0.0, 1.0), "uint8", (50.0, 4.0, 4.0))
SGD = OptimiserSpec("sgd", learning_rate=0.05, momentum=0.9, schedule="constant", warmup_steps=0)
STEPS, BATCH = 20, 4


def _share(rank: int, world: int, first_step: int) -> Iterator[dict[str, Any]]:
    """One worker's part of batches in which workers have very different numbers of known pixels."""
    for step in range(first_step, STEPS):
        rng = np.random.default_rng(step)
        image = rng.standard_normal((BATCH, 16, 16)).astype(np.float32)
        target = (image + rng.standard_normal(image.shape) > 0).astype(np.uint8)
        target[::2, :, 3:] = UNKNOWN
        batch = {"image": image, "target": target, "weights": rng.random(image.shape, np.float32) + 0.5}
        yield {name: values[rank::world] for name, values in batch.items()}


def _trained(folder: Path, rank: int = 0, world: int = 1, resume: Path | None = None) -> None:
    """Twenty steps, with a checkpoint after each ten."""

    def on_checkpoint(snapshot: Snapshot) -> None:
        if rank == 0:
            snapshot.save(folder / str(snapshot.step), CONTRACT)

    fit(
        partial(_share, rank, world),
        SPEC,
        SGD,
        FitPlan(STEPS, log_every=STEPS, checkpoint_every=10, seed=5),
        on_step=lambda line: None,
        on_checkpoint=on_checkpoint,
        resume=resume,
    )


def _loop(config: dict[str, Any]) -> None:
    rank, world = rank_and_world()
    _trained(config["folder"], rank, world)
    report({"workers": world}, lambda folder: None)


def _largest_difference(one: Path, other: Path) -> float:
    with np.load(one / STATE) as ours, np.load(other / STATE) as theirs:
        assert ours.files == theirs.files
        variables = [name for name in ours.files if name not in ("step", "losses")]
        return max(float(np.abs(ours[name] - theirs[name]).max()) for name in variables)


def test_two_workers_at_half_the_batch_are_one_worker_at_all_of_it(ray_session: None, tmp_path: Path) -> None:
    """Gradients, synchronised batch statistics and momenta agree; and one worker can take over from two."""
    group = TrainGroup("pair", tmp_path / "group", workers=2, cpus_per_worker=0.5, max_failures=0)
    run_group(_loop, {"folder": tmp_path / "two"}, group, lambda metrics, checkpoint: None)
    _trained(tmp_path / "one")
    difference = _largest_difference(tmp_path / "two" / "20", tmp_path / "one" / "20")
    print(f"2 workers at batch 2 from 1 worker at batch 4, {STEPS} steps: largest difference {difference:.2g}")
    assert difference < 1e-4
    assert _largest_difference(tmp_path / "one" / "10", tmp_path / "one" / "20") > 0.05, "weights moved"

    _trained(tmp_path / "taken-over", resume=tmp_path / "two" / "10")
    assert _largest_difference(tmp_path / "taken-over" / "20", tmp_path / "one" / "20") < 1e-4
