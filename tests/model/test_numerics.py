"""Precision and determinism: what is kept is float32, what is asked for is switched on, and overflow is agreed upon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundles import make_bundle
from tessera.images.normalise import Normalisation
from tessera.model import training
from tessera.model.bundle import Contract, load_model
from tessera.model.numerics import Numerics, agreed
from tessera.model.optimiser import OptimiserSpec
from tessera.model.predictor import load_predictor
from tessera.model.spec import UnetSpec
from tessera.model.training import FitPlan, Snapshot, fit

SPEC = UnetSpec(filters=2, depth=1, padding="same", batch_norm=True, dropout=0.0)
CONTRACT = Contract(SPEC, Normalisation("global", 0.0, 1.0), "uint8", (50.0, 4.0, 4.0))


def _batches(first: int) -> Iterator[dict[str, Any]]:
    for step in range(first, 8):
        image = np.random.default_rng(step).standard_normal((2, 16, 16)).astype(np.float32)
        yield {"image": image, "target": (image > 0).astype(np.uint8), "weights": np.ones_like(image)}


def _losses(folder: Path, numerics: Numerics, ema: float = 0.0) -> list[float]:
    losses: list[float] = []

    def on_checkpoint(snapshot: Snapshot) -> None:
        snapshot.save(folder, CONTRACT)

    fit(
        _batches,
        SPEC,
        OptimiserSpec("sgd", learning_rate=0.1, momentum=0.9, warmup_steps=2, ema_momentum=ema),
        FitPlan(8, log_every=1, checkpoint_every=8, seed=5),
        on_step=lambda line: losses.append(line["loss"]),
        on_checkpoint=on_checkpoint,
        numerics=numerics,
    )
    return losses


@pytest.fixture
def determinism_undone() -> Iterator[Any]:
    from tensorflow.python.framework import config

    yield config
    config.disable_op_determinism()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_mixed_precision_learns_alike_and_its_bundle_is_float32(tmp_path: Path, ema: float) -> None:
    import keras

    exact = _losses(tmp_path / "exact", Numerics())
    mixed = _losses(tmp_path / "mixed", Numerics(precision="mixed"), ema)
    np.testing.assert_allclose(mixed, exact, rtol=0.01)
    assert mixed != exact, "activations are float16"
    kept = load_model(tmp_path / "mixed" / "bundle")
    assert {layer.compute_dtype for layer in kept.layers} == {"float32"}
    assert keras.config.dtype_policy().name == "float32", "what is built next is not affected"


def test_one_worker_trains_on_fused_normalisation_and_keeps_keras_own(tmp_path: Path) -> None:
    import keras

    kinds: list[set[type]] = []

    def on_checkpoint(snapshot: Snapshot) -> None:
        snapshot.save(tmp_path, CONTRACT)
        kinds.append({type(layer) for layer in snapshot.model.layers})

    plan = FitPlan(2, log_every=1, checkpoint_every=2, seed=5)
    fit(_batches, SPEC, OptimiserSpec(), plan, on_step=lambda line: None, on_checkpoint=on_checkpoint)
    kinds.append({type(layer) for layer in load_model(tmp_path / "bundle").layers})
    for kept in kinds:
        assert [kind for kind in kept if issubclass(kind, keras.layers.BatchNormalization)] == [
            keras.layers.BatchNormalization
        ]


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_fused_normalisation_is_keras_normalisation(
    tmp_path: Path, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses of 8 steps, and after them weights and moving statistics, which inference normalises with."""
    import keras

    fused = _losses(tmp_path / "fused", Numerics(precision))
    monkeypatch.setattr(training, "fused_normalisation", lambda: keras.layers.BatchNormalization)
    plain = _losses(tmp_path / "plain", Numerics(precision))
    assert fused != plain, "the additions have another order"
    tolerance = 1e-5 if precision == "float32" else 1e-2
    np.testing.assert_allclose(fused, plain, rtol=tolerance)
    kept = [load_model(tmp_path / arm / "bundle").get_weights() for arm in ("fused", "plain")]
    for one, other in zip(*kept, strict=True):
        np.testing.assert_allclose(one, other, rtol=10 * tolerance, atol=tolerance)


def test_deterministic_operations_are_switched_on_where_asked_for(tmp_path: Path, determinism_undone: Any) -> None:
    _losses(tmp_path / "fast", Numerics())
    assert not determinism_undone.is_op_determinism_enabled()
    runs = [_losses(tmp_path / name, Numerics(deterministic=True)) for name in "ab"]
    assert determinism_undone.is_op_determinism_enabled()
    assert runs[0] == runs[1]


def test_training_and_inference_compute_without_tf32(tmp_path: Path) -> None:
    from tensorflow import config

    config.experimental.enable_tensor_float_32_execution(True)
    load_predictor(make_bundle(tmp_path / "bundle"))
    assert not config.experimental.tensor_float_32_execution_enabled()
    config.experimental.enable_tensor_float_32_execution(True)
    _losses(tmp_path, Numerics())
    assert not config.experimental.tensor_float_32_execution_enabled()


def test_gradients_that_overflowed_anywhere_are_refused_everywhere() -> None:
    fine = [np.ones(3, np.float32), np.full((2, 2), 7, np.float32)]
    for one, other in zip(agreed(fine, lambda count: count + 0.0), fine, strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(np.isnan(one).all() for one in agreed(fine, lambda count: count + 1.0)), "another replica overflowed"
    assert all(np.isnan(one).all() for one in agreed([fine[0] * np.inf, fine[1]], lambda count: count))


def test_a_precision_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision='half' is unknown.*Try 'float32' or 'mixed'"):
        Numerics(precision="half")  # type: ignore[arg-type]
