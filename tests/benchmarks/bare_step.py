"""The training step without anything around it: what every part of the product is compared with.

A Keras graph, an optimiser and one `tf.function` on batches that lie in memory; no Ray, no checkpoints, no log. The
graph and the loss are the product's, so that only what is around them differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.cli.main import parse
from tessera.images.augment import Augmentation
from tessera.model.losses import loss_sums, loss_value
from tessera.settings.train import DataSettings, TrainSettings

Batch = Mapping[str, NDArray[Any]]


def recipe_of(config: Path) -> TrainSettings:
    """A config's settings on the synthetic volume, without the average of weights: the bare step has none."""
    _, settings = parse(["train", "--config", str(config)])
    return replace(settings, data=DataSettings(), optimiser=replace(settings.optimiser, ema_momentum=0.0))


def without_augmentation(settings: TrainSettings) -> TrainSettings:
    """The same with plain crops."""
    return replace(settings, augmentation=Augmentation())


def synthetic_batches(settings: TrainSettings, count: int, size: int | None = None) -> list[Batch]:
    """Batches of a training's shapes and dtypes, filled with noise.

    Args:
      settings: the training's.
      count: batches.
      size: samples in each; None takes the recipe's batch.
    """
    rng = np.random.default_rng(settings.seed)
    input_px, crop_px = settings.network.input_extent(settings.schedule.crop_px), settings.schedule.crop_px
    samples = settings.schedule.batch if size is None else size

    def one() -> Batch:
        target = rng.integers(0, 2, (samples, crop_px, crop_px), dtype=np.uint8)
        image = rng.standard_normal((samples, input_px, input_px), dtype=np.float32)
        return {"image": image, "target": target, "weights": np.ones(target.shape, np.float32)}

    return [one() for _ in range(count)]


class BareLoop:
    """A warm loop over batches in memory.

    Args:
      settings: the training's.
      batches: go round.
      norm: class of the normalisation layers; None takes what one worker trains with.
    """

    def __init__(self, settings: TrainSettings, batches: Sequence[Batch], norm: Any = None) -> None:
        import keras
        import tensorflow as tf

        from tessera.model.numerics import fused_normalisation
        from tessera.model.unet import build_unet

        keras.utils.set_random_seed(settings.seed)
        self._batches = cycle(batches)
        model = build_unet(settings.network, seed=settings.seed, normalisation=norm or fused_normalisation())
        optimizer = keras.optimizers.Adam(settings.optimiser.learning_rate)
        optimizer.build(model.trainable_variables)

        @tf.function
        def step(image: Any, target: Any, weights: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = loss_value(loss_sums(model(image, training=True), target, weights), settings.loss.dice)
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

        self._step = step

    def take(self, steps: int) -> float:
        """Take some steps; returns the last loss."""
        loss = 0.0
        for batch in (next(self._batches) for _ in range(steps)):
            loss = float(self._step(batch["image"][..., np.newaxis], batch["target"], batch["weights"]))
        return loss

    def samples_per_second(self, steps: int, clock: Callable[[], float] = time.perf_counter) -> float:
        """Speed over some steps, by the clock on the wall or by that of the processor."""
        size = len(next(self._batches)["image"])
        begun = clock()
        self.take(steps)
        return steps * size / (clock() - begun)
