"""Data-parallel training of the U-Net: with numerics.py the only file that imports TensorFlow.

`fit` knows no Ray and no MLflow: it takes batches, and hands steps and checkpoints to the functions it was given.
The loss over workers is sum(weight x cross-entropy) / global number of known pixels, never a mean of means; gradients
are summed over replicas, so each replica differentiates its share of the global loss (losses.py).
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.model.bundle import Contract, load_model, save_bundle
from tessera.model.numerics import (
    FLOAT32,
    Numerics,
    agreed,
    fused_normalisation,
    layers_of,
    switch_off_tf32,
    switch_on_determinism,
)
from tessera.model.optimiser import OptimiserSpec
from tessera.model.predictor import Predict, valid_predict
from tessera.model.spec import UnetSpec

Batch = Mapping[str, NDArray[Any]]
"""`image` float32 (b, y, x), `target` uint8 (b, y', x'), `weights` float32 (b, y', x'); known pixels: target != 255."""

STATE = "state.npz"


class DivergedError(FloatingPointError):
    """The loss became NaN or infinite at `step`, counted from 0; a restart would meet the same samples again."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(
            f"the loss of step {step} is {loss}: training has diverged. Lower --optimiser.learning_rate or "
            "lengthen --optimiser.warmup_steps; the last checkpoint is kept."
        )
        self.step = step


@dataclass(frozen=True)
class FitPlan:
    """How long to train and how often to speak.

    Attributes:
      steps: optimiser steps of the whole run, counted from its beginning, not from a resume.
      log_every: steps between two calls of `on_step`.
      checkpoint_every: steps between two calls of `on_checkpoint`; the last step always makes one.
      seed: of weights and dropout.
    """

    steps: int
    log_every: int
    checkpoint_every: int
    seed: int


@dataclass(frozen=True)
class Snapshot:
    """The network after `step` steps.

    Attributes:
      step: optimiser steps behind it.
      spec: the network's.
      model: the Keras graph to judge and keep; with the averaged weights where they are averaged.
      state: what a restart needs, owner -> variables: of the network in training, its optimiser and its average.
      losses: of the steps since `on_step` last spoke, whose mean a restart would otherwise get wrong.
    """

    step: int
    spec: UnetSpec
    model: Any
    state: Mapping[str, Sequence[Any]]
    losses: Sequence[float] = ()

    def predict(self) -> Predict:
        """A predictor with these weights."""
        return valid_predict(self.model, self.spec)

    def save(self, folder: Path, contract: Contract) -> None:
        """Write the bundle, and beside it what a restart needs: every variable of the training, and the step.

        Dropout's seed states are among the network's variables, so a resumed run draws the masks it would have drawn.
        """
        save_bundle(folder / "bundle", self.model, contract)
        arrays = {f"{name}/{i}": np.asarray(v) for name, owned in self.state.items() for i, v in enumerate(owned)}
        log = {"step": np.int64(self.step), "losses": np.asarray(self.losses, np.float64)}
        np.savez(folder / STATE, **log, **arrays)  # type: ignore[arg-type]


def fit(
    batches: Callable[[int], Iterable[Batch]],
    spec: UnetSpec,
    optimiser: OptimiserSpec,
    plan: FitPlan,
    *,
    on_step: Callable[[Mapping[str, float]], None],
    on_checkpoint: Callable[[Snapshot], None],
    dice: float = 0.0,
    numerics: Numerics = FLOAT32,
    start_from: Path | None = None,
    resume: Path | None = None,
) -> None:
    """Train until `plan.steps`, from the start or from a checkpoint.

    Args:
      batches: given the first step, this worker's batches from there on, in order. A resumed run with averaged
        weights asks for some earlier ones too, on which it only measures statistics.
      spec: the network.
      optimiser: the optimiser, and whether its weights are averaged.
      plan: length and cadence.
      on_step: receives step, loss (mean since the last call), learning_rate and samples_per_second of all workers.
      on_checkpoint: receives a `Snapshot`; called on every worker at the same steps.
      dice: weight of soft Dice beside the cross-entropy.
      numerics: precision and determinism.
      start_from: a bundle whose weights and frozen statistics the network begins with; optimiser and steps begin anew.
      resume: a folder that `Snapshot.save` filled; None starts afresh.

    Raises:
      DivergedError: the loss is not finite, on every worker at once; the step is named.
      ValueError: the checkpoint, or the bundle to start from, is of another architecture.
    """
    trainer = _Trainer(spec, optimiser, plan, dice, numerics, None if resume else start_from)
    first, losses = trainer.restore(resume) if resume else (0, [])
    log = _Log(plan, on_step, trainer.workers, losses)
    recalled = min(first, trainer.memory)
    feed = iter(batches(first - recalled))
    for _ in range(recalled):
        trainer.remember(next(feed))
    for step in range(first, plan.steps):
        batch = next(feed)
        rate = optimiser.rate_at(step, plan.steps)
        log.add(step, trainer.step(batch, rate, optimiser.ema_at(step)), rate, len(batch["image"]))
        if (step + 1) % plan.checkpoint_every == 0 or step + 1 == plan.steps:
            log.pause()
            on_checkpoint(Snapshot(step + 1, spec, trainer.judged(), trainer.state, tuple(log.losses)))
            log.resume()


class _Trainer:
    """Network, optimiser, average and one compiled step, inside a distribution strategy."""

    def __init__(
        self,
        spec: UnetSpec,
        optimiser: OptimiserSpec,
        plan: FitPlan,
        dice: float,
        numerics: Numerics,
        start_from: Path | None,
    ) -> None:
        # Ray's TensorFlow backend asks for Keras 2, which this project does not speak.
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
        import keras
        import tensorflow as tf

        switch_off_tf32()
        self.workers = len(json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {}).get("worker", [0]))
        self.strategy = (
            tf.distribute.MultiWorkerMirroredStrategy() if self.workers > 1 else tf.distribute.get_strategy()
        )
        with self.strategy.scope():
            keras.utils.set_random_seed(plan.seed)
            if numerics.deterministic:
                switch_on_determinism()
            from tessera.model.unet import build_unet

            alone = self.workers == 1
            norm = fused_normalisation() if alone else keras.layers.BatchNormalization
            with layers_of(numerics.precision):
                self.model = build_unet(spec, seed=plan.seed, synchronized=not alone, normalisation=norm)
            if start_from is not None:  # before the average, which begins at the weights of this moment
                _take_weights(self.model, start_from)
            self.optimizer = _make_optimizer(keras, optimiser, numerics)
            self.optimizer.build(self.model.trainable_variables)
        self._spec = spec
        self.averaged = _Averaged(tf, self.strategy, spec, self.model, self.workers) if optimiser.ema_momentum else None
        self.memory = optimiser.ema_norm_batches if self.averaged and spec.batch_norm else 0
        self._recent: deque[NDArray[np.float32]] = deque(maxlen=self.memory)
        self._compiled = _compile_step(tf, self.strategy, self.model, self.optimizer, self.averaged, dice)

    @property
    def state(self) -> dict[str, Sequence[Any]]:
        """Owner -> variables: all that a restart needs besides the step."""
        average = {"average": self.averaged.average.variables} if self.averaged else {}
        return {"model": self.model.variables, "optimizer": self.optimizer.variables, **average}

    def step(self, batch: Batch, rate: float, momentum: float) -> float:
        """Take one step; returns the loss over all workers' known pixels."""
        self.optimizer.learning_rate.assign(rate)
        image = self.remember(batch)
        target, weights = np.asarray(batch["target"]), np.asarray(batch["weights"], np.float32)
        return float(self._compiled(image, target, weights, np.asarray(momentum, np.float32)))

    def remember(self, batch: Batch) -> NDArray[np.float32]:
        """The batch's images as the network takes them, kept among the last ones where statistics need them."""
        image = np.asarray(batch["image"], np.float32)
        image = image.reshape(*image.shape[:3], -1)  # a 2D network's has no channel axis
        if self.memory:
            self._recent.append(image.copy())  # the original may be a view that would hold an object store's memory
        return image

    def judged(self) -> Any:
        """The network to judge and keep; every worker must ask for it at the same steps."""
        if self.averaged:
            return self.averaged.network(self._recent)
        self._kept.set_weights(self.model.get_weights())
        return self._kept

    @cached_property
    def _kept(self) -> Any:
        """Keras' own layers in float32, whatever the training computes with."""
        from tessera.model.unet import build_unet

        return build_unet(self._spec)

    def restore(self, folder: Path) -> tuple[int, list[float]]:
        """Load a checkpoint; returns the number of steps it has behind it, and the losses not yet spoken of."""
        with np.load(folder / STATE, allow_pickle=False) as saved, self.strategy.scope():
            for owner, variables in self.state.items():
                shapes = [tuple(saved[k].shape) for k in saved.files if k.startswith(f"{owner}/")]
                wanted = [tuple(v.shape) for v in variables]
                if shapes != wanted:
                    raise ValueError(
                        f"the checkpoint in {folder} is of another architecture: it has {len(shapes)} {owner} arrays, "
                        f"this network wants {len(wanted)} (or other shapes). Train under another run name."
                    )
                for i, variable in enumerate(variables):
                    variable.assign(saved[f"{owner}/{i}"])
            return int(saved["step"]), [float(loss) for loss in saved["losses"]]


class _Averaged:
    """Averaged weights, and the network that they make at a checkpoint."""

    def __init__(self, tf: Any, strategy: Any, spec: UnetSpec, model: Any, workers: int) -> None:
        from tessera.model.averaging import WeightAverage, norm_probe
        from tessera.model.unet import build_unet

        self.average = WeightAverage(model.trainable_variables)
        self._network = build_unet(spec)
        self._probe: Any = None
        if spec.batch_norm:
            with strategy.scope():
                self._probe = norm_probe(spec, synchronized=workers > 1)
            self._forward = _compile_forward(tf, strategy, self._probe)

    def network(self, images: Iterable[NDArray[np.float32]]) -> Any:
        """The averaged network, its batch normalisation measured on these batches; the same object every time."""
        from tessera.model.averaging import measure_statistics

        for variable, value in zip(self._network.trainable_variables, self.average.variables, strict=True):
            variable.assign(value)
        if self._probe is not None:
            self._probe.set_weights(self._network.get_weights())
            measure_statistics(self._probe, self._forward, images)
            self._network.set_weights(self._probe.get_weights())
        return self._network


def _take_weights(model: Any, bundle: Path) -> None:
    """Give a network the weights of a bundle, the statistics of batch normalisation included."""
    found = load_model(bundle).get_weights()
    shapes, wanted = [tuple(w.shape) for w in found], [tuple(w.shape) for w in model.get_weights()]
    if shapes != wanted:
        differing = next((i for i, (a, b) in enumerate(zip(shapes, wanted, strict=False)) if a != b), len(wanted))
        raise ValueError(
            f"the bundle {bundle} holds {len(shapes)} arrays of weights and this network wants {len(wanted)}, of other "
            f"shapes from number {differing} on: it would be another network. Train with its contract's network."
        )
    model.set_weights(found)


def _make_optimizer(keras: Any, spec: OptimiserSpec, numerics: Numerics) -> Any:
    # The rate is assigned before every step: schedules inside the optimiser would be one more state to resume.
    if spec.name == "sgd":
        optimizer = keras.optimizers.SGD(learning_rate=spec.learning_rate, momentum=spec.momentum)
    else:
        optimizer = keras.optimizers.Adam(learning_rate=spec.learning_rate)
    return keras.optimizers.LossScaleOptimizer(optimizer) if numerics.precision == "mixed" else optimizer


def _compile_forward(tf: Any, strategy: Any, model: Any) -> Callable[[Any], Any]:
    @tf.function(reduce_retracing=True)
    def forward(image: Any) -> None:
        strategy.run(lambda one: model(one, training=True), args=(image,))

    return forward  # type: ignore[no-any-return]


def _compile_step(
    tf: Any, strategy: Any, model: Any, optimizer: Any, averaged: _Averaged | None, dice: float
) -> Callable[..., Any]:
    from tessera.model.losses import loss_share, loss_sums, loss_value

    mixed = hasattr(optimizer, "inner_optimizer")

    def over_replicas(value: Any) -> Any:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, value)

    def replica_step(image: Any, target: Any, weights: Any) -> Any:
        with tf.GradientTape() as tape:
            sums = loss_sums(model(image, training=True), target, weights)
            totals = over_replicas(sums)
            share = loss_share(sums, totals, dice)
            scaled = optimizer.scale_loss(share)
        gradients = tape.gradient(scaled, model.trainable_variables)
        if mixed:
            gradients = agreed(gradients, over_replicas)
        optimizer.apply(gradients, model.trainable_variables)  # sums the gradients over replicas
        return loss_value(totals, dice)

    @tf.function(reduce_retracing=True)
    def step(image: Any, target: Any, weights: Any, momentum: Any) -> Any:
        loss = strategy.run(replica_step, args=(image, target, weights))
        if averaged:
            averaged.average.update(model.trainable_variables, momentum)
        return loss

    return step  # type: ignore[no-any-return]


class _Log:
    """Collects losses and speaks every `log_every` steps; time spent in checkpoints does not count as training."""

    def __init__(
        self, plan: FitPlan, on_step: Callable[[Mapping[str, float]], None], workers: int, losses: list[float]
    ) -> None:
        self.plan, self.on_step, self.workers = plan, on_step, workers
        self.losses = losses
        self.samples, self.seconds, self.since = 0, 0.0, time.perf_counter()

    def add(self, step: int, loss: float, rate: float, batch: int) -> None:
        if not np.isfinite(loss):
            raise DivergedError(step, loss)
        self.losses.append(loss)
        self.samples += batch * self.workers
        if (step + 1) % self.plan.log_every == 0 or step + 1 == self.plan.steps:
            self.pause()
            self.on_step(
                {
                    "step": step + 1,
                    "loss": float(np.mean(self.losses)),
                    "learning_rate": rate,
                    "samples_per_second": self.samples / max(self.seconds, 1e-9),
                }
            )
            self.losses, self.samples, self.seconds = [], 0, 0.0
            self.resume()

    def pause(self) -> None:
        self.seconds += time.perf_counter() - self.since

    def resume(self) -> None:
        self.since = time.perf_counter()
