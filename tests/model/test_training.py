"""The loss, the schedule and the step, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.images.normalise import Normalisation
from tessera.model.bundle import Contract
from tessera.model.losses import UNKNOWN, weighted_cross_entropy
from tessera.model.optimiser import OptimiserSpec
from tessera.model.spec import UnetSpec
from tessera.model.training import DivergedError, FitPlan, Snapshot, fit

SPEC = UnetSpec(filters=2, depth=1, padding="same", batch_norm=True, dropout=0.2)
CONTRACT = Contract(SPEC, Normalisation("global", 0.0, 1.0), "uint8", (50.0, 4.0, 4.0))


def test_the_loss_is_the_weighted_sum_over_known_pixels() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 4, 5, 1)).astype(np.float32) * 5
    target = rng.choice(np.array([0, 1, UNKNOWN], np.uint8), (2, 4, 5))
    weights = rng.random((2, 4, 5)).astype(np.float32)
    p = 1 / (1 + np.exp(-logits[..., 0].astype(np.float64)))
    entropy = -np.where(target == 1, np.log(p), np.log(1 - p)) * weights * (target != UNKNOWN)
    total, known = weighted_cross_entropy(logits, target, weights)
    assert float(total) == pytest.approx(entropy.sum(), rel=1e-5)
    assert float(known) == (target != UNKNOWN).sum()


def test_the_loss_of_a_huge_logit_is_finite() -> None:
    logits = np.array([[[[1e4], [-1e4]]]], np.float32)
    total, _ = weighted_cross_entropy(logits, np.array([[[0, 1]]], np.uint8), np.ones((1, 1, 2), np.float32))
    assert float(total) == pytest.approx(2e4)


def test_the_rate_warms_up_peaks_and_decays_to_zero() -> None:
    spec = OptimiserSpec(learning_rate=0.1, warmup_steps=10)
    rates = [spec.rate_at(step, 110) for step in range(111)]
    assert rates[9] == pytest.approx(0.1) == max(rates)
    assert rates[60] == pytest.approx(0.05)
    assert rates[110] == pytest.approx(0.0)
    assert OptimiserSpec(learning_rate=0.1, schedule="constant", warmup_steps=0).rate_at(99, 100) == 0.1


def _batches(first: int) -> Iterator[dict[str, Any]]:
    step = first
    while True:
        rng = np.random.default_rng(step)
        image = rng.standard_normal((2, 16, 16)).astype(np.float32)
        yield {"image": image, "target": (image > 0).astype(np.uint8), "weights": np.ones_like(image)}
        step += 1


def _fit(
    steps: int, folder: Path, *, every: int = 4, log_every: int = 1, resume: Path | None = None, **optimiser: Any
) -> list[float]:
    losses: list[float] = []

    def on_checkpoint(snapshot: Snapshot) -> None:
        snapshot.save(folder / str(snapshot.step), CONTRACT)

    fit(
        _batches,
        SPEC,
        OptimiserSpec(**{"learning_rate": 0.01, "warmup_steps": 2, **optimiser}),
        FitPlan(steps, log_every, checkpoint_every=every, seed=5),
        on_step=lambda line: losses.append(line["loss"]),
        on_checkpoint=on_checkpoint,
        resume=resume,
    )
    return losses


def test_a_resumed_run_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    """Weights, optimiser, frozen statistics, dropout masks and losses not yet told are all in the checkpoint."""
    whole = _fit(8, tmp_path / "whole", log_every=3)
    resumed = _fit(8, tmp_path / "again", log_every=3, resume=tmp_path / "whole" / "4")
    np.testing.assert_allclose(resumed, whole[1:], rtol=1e-6)
    assert len(resumed) == 2, "the means of steps 4 to 6 and 7 to 8"


def test_sgd_with_momentum_learns_too(tmp_path: Path) -> None:
    losses = _fit(12, tmp_path, every=12, name="sgd", momentum=0.9)
    assert losses[-1] < losses[0]


def test_a_diverging_loss_names_its_step(tmp_path: Path) -> None:
    with pytest.raises(
        DivergedError, match=r"the loss of step \d+ is (nan|inf).*Lower --optimiser.learning_rate"
    ) as told:
        _fit(60, tmp_path, every=100, name="sgd", learning_rate=1e30, warmup_steps=0, schedule="constant")
    assert f"step {told.value.step} " in str(told.value)
    assert told.value.step >= 1, "the first loss is that of the initial weights"


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    _fit(2, tmp_path, every=2)
    with pytest.raises(ValueError, match=r"is of another architecture.*Train under another run name"):
        fit(
            _batches,
            UnetSpec(filters=3, depth=1, padding="same"),
            OptimiserSpec(),
            FitPlan(4, 1, 4, seed=5),
            on_step=lambda line: None,
            on_checkpoint=lambda snapshot: None,
            resume=tmp_path / "2",
        )
