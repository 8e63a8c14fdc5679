"""The weight average: an oracle over recorded weights, statistics by hand, restarts, and a training left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tessera.images.normalise import Normalisation
from tessera.model.bundle import Contract, load_model
from tessera.model.optimiser import OptimiserSpec
from tessera.model.spec import UnetSpec
from tessera.model.training import FitPlan, Snapshot, fit

SPEC = UnetSpec(filters=2, depth=1, padding="same", batch_norm=True, dropout=0.2)
ADAM = OptimiserSpec(learning_rate=0.02, warmup_steps=2, ema_momentum=0.5, ema_norm_batches=3)
STEPS, EVERY = 6, 2
Arrays = dict[str, list[NDArray[Any]]]


def _image(step: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(step)
    return (rng.normal(step, 1 + step, (2, 16, 16))).astype(np.float32)


def _batches(first: int) -> Iterator[dict[str, Any]]:
    for step in range(first, STEPS):
        image = _image(step)
        yield {"image": image, "target": (image > step).astype(np.uint8), "weights": np.ones_like(image)}


class _Seen:
    """What a run showed: its losses, and copies of its snapshots."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.losses: list[float] = []
        self.judged: dict[int, list[NDArray[Any]]] = {}
        self.state: dict[int, Arrays] = {}

    def checkpoint(self, snapshot: Snapshot) -> None:
        self.judged[snapshot.step] = [np.array(w) for w in snapshot.model.get_weights()]
        self.state[snapshot.step] = {
            name: [np.asarray(v).copy() for v in owned] for name, owned in snapshot.state.items()
        }
        if self.folder:
            contract = Contract(SPEC, Normalisation("global", 0.0, 1.0), "uint8", (50.0, 4.0, 4.0))
            snapshot.save(self.folder / str(snapshot.step), contract)


def _run(
    optimiser: OptimiserSpec, every: int, folder: Path | None = None, resume: Path | None = None, spec: UnetSpec = SPEC
) -> _Seen:
    seen = _Seen(folder)
    plan = FitPlan(STEPS, log_every=1, checkpoint_every=every, seed=5)
    fit(
        _batches,
        spec,
        optimiser,
        plan,
        on_step=lambda line: seen.losses.append(line["loss"]),
        on_checkpoint=seen.checkpoint,
        resume=resume,
    )
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("averaged")


@pytest.fixture(scope="module")
def averaged(folder: Path) -> _Seen:
    return _run(ADAM, EVERY, folder)


@pytest.fixture(scope="module")
def plain() -> _Seen:
    """The same run without an average, looked at after every step."""
    return _run(replace(ADAM, ema_momentum=0.0), 1)


def _assert_equal(one: list[NDArray[Any]], other: list[NDArray[Any]]) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_is_the_same_with_and_without_the_average(averaged: _Seen, plain: _Seen) -> None:
    assert averaged.losses == plain.losses and len(plain.losses) == STEPS
    for step in (2, 4, 6):
        _assert_equal(averaged.state[step]["model"], plain.state[step]["model"])
        _assert_equal(averaged.state[step]["optimizer"], plain.state[step]["optimizer"])


def _initial_weights() -> list[NDArray[np.float32]]:
    from tessera.model.unet import build_unet

    return [np.asarray(v) for v in build_unet(SPEC, seed=5).trainable_variables]


def _trainable(weights: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The trainable ones among a network's weights."""
    from tessera.model.unet import build_unet

    model = build_unet(SPEC)
    model.set_weights(weights)
    return [np.asarray(v).copy() for v in model.trainable_variables]


def test_the_average_is_that_of_the_recorded_weights(averaged: _Seen, plain: _Seen) -> None:
    expected = [w.astype(np.float64) for w in _initial_weights()]
    for step in range(STEPS):
        momentum = min(0.5, (1 + step) / (10 + step))
        weights = _trainable(plain.judged[step + 1])
        expected = [momentum * a + (1 - momentum) * w for a, w in zip(expected, weights, strict=True)]
        if (step + 1) % EVERY == 0:
            found = averaged.state[step + 1]["average"]
            _assert_equal(_trainable(averaged.judged[step + 1]), found)
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not np.allclose(expected[0], weights[0], atol=1e-3), "the average differs from the last weights"


def _statistics_by_hand(weights: list[NDArray[Any]], images: list[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
    """Mean and variance, averaged over batches, of what reaches each normalisation of SPEC's graph, in float64.

    The graph is rebuilt from plain NumPy up to its second normalisation: two convolutions, one ReLU between.
    """
    kernels = [w.astype(np.float64) for w in weights if w.ndim == 4][:2]
    gamma, beta = (w.astype(np.float64) for w in weights[1:3])
    per_batch = []
    for image in images:
        first = _convolved(image[..., np.newaxis].astype(np.float64), kernels[0])
        mean, variance = first.mean((0, 1, 2)), first.var((0, 1, 2))
        normalised = (first - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        second = _convolved(np.maximum(normalised, 0), kernels[1])
        per_batch.append([mean, variance, second.mean((0, 1, 2)), second.var((0, 1, 2))])
    return [np.mean(values, axis=0) for values in zip(*per_batch, strict=True)]


def _convolved(image: NDArray[np.float64], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    _, y, x, _ = image.shape
    shifts = [(dy, dx) for dy in range(3) for dx in range(3)]
    return np.sum([padded[:, dy : dy + y, dx : dx + x] @ kernel[dy, dx] for dy, dx in shifts], axis=0)


@pytest.mark.parametrize("step", [2, 6])
def test_statistics_are_the_mean_of_those_of_the_last_batches(averaged: _Seen, step: int) -> None:
    weights = averaged.judged[step]  # conv, gamma, beta, moving mean, moving variance, conv, ...
    images = [_image(i) for i in range(max(0, step - 3), step)]
    expected = _statistics_by_hand(weights, images)
    found = [weights[i] for i in (3, 4, 8, 9)]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", [2, 4])
def test_a_resumed_run_continues_the_same_average(averaged: _Seen, folder: Path, at: int) -> None:
    """Also where the batches to measure on, three, were taken before the restart."""
    resumed = _run(ADAM, EVERY, resume=folder / str(at))
    assert resumed.losses == averaged.losses[at:]
    for step in range(at + EVERY, STEPS + 1, EVERY):
        _assert_equal(resumed.judged[step], averaged.judged[step])
        _assert_equal(resumed.state[step]["average"], averaged.state[step]["average"])


def test_the_bundle_holds_the_averaged_network(averaged: _Seen, folder: Path) -> None:
    kept = load_model(folder / "6" / "bundle")
    _assert_equal(kept.get_weights(), averaged.judged[6])
    assert kept.get_layer("down0a_norm").momentum == 0.95, "the bundle's graph can be trained further"


def test_a_network_without_normalisation_is_averaged_too() -> None:
    spec = replace(SPEC, batch_norm=False)
    seen = _run(ADAM, STEPS, spec=spec)
    _assert_equal(seen.judged[STEPS], seen.state[STEPS]["average"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"ema_momentum": 1.0}, r"ema_momentum=1\.0 must lie in \[0, 1\).*Try 0\.99"),
        ({"ema_momentum": float("nan")}, r"ema_momentum=nan must lie in \[0, 1\)"),
        ({"ema_norm_batches": 0}, r"ema_norm_batches=0: .*Try 32"),
    ],
)
def test_an_average_that_would_mislead_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        OptimiserSpec(**changes)
