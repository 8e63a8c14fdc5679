"""The exponential moving average of the weights, and the batch normalisation that fits it.

The weights of single steps wander around a minimum, and their average lies nearer to it (Polyak and Juditsky 1992).
Averaged weights make activations that no training step has seen, so the moving statistics of batch normalisation, which
belong to the raw weights, are wrong for them: they are measured anew before a checkpoint is judged (Izmailov et al.
2018, section 3.2). The network in training is only read: its weights, statistics and dropout masks go on unchanged.

    training     w0 --step--> w1 --step--> w2 ...         raw weights, moving statistics
                 |            |            |
    average      a0 --------> a1 --------> a2 ...         a += (1 - momentum) (w - a), in the compiled step
                                           |
    checkpoint           a2 + statistics of the last batches under a2 = the network that is judged and kept
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from tessera.model.spec import UnetSpec
from tessera.model.unet import build_unet

Forward = Callable[[NDArray[np.float32]], Any]
"""Runs this worker's share of a batch, (b, y, x, 1), through a probe in training mode; all workers call it together."""


class WeightAverage:
    """The moving average of a network's trainable weights, starting at their present values.

    Each worker keeps its own copy of variables that are equal on all of them: no step exchanges anything for it.
    """

    def __init__(self, weights: Sequence[Any]) -> None:
        self.variables = [keras.Variable(np.asarray(weight), trainable=False, name="average") for weight in weights]

    def update(self, weights: Sequence[Any], momentum: Any) -> None:
        """Move towards `weights` by 1 - `momentum`, a float32 scalar; part of the compiled step."""
        for average, weight in zip(self.variables, weights, strict=True):
            average.assign_add((1.0 - momentum) * (keras.ops.convert_to_tensor(weight) - average))


def norm_probe(spec: UnetSpec, *, synchronized: bool) -> keras.Model:
    """The training graph, altered so that a pass in training mode leaves that batch's statistics in its moving ones.

    Dropout is off: it adds variance that inference does not have.
    """
    probe = build_unet(replace(spec, dropout=0.0), synchronized=synchronized)
    for layer in _norms(probe):
        layer.momentum = 0.0
    return probe


def measure_statistics(probe: keras.Model, forward: Forward, images: Iterable[NDArray[np.float32]]) -> None:
    """Set a probe's moving means and variances to the plain average of those of some batches.

    Args:
      probe: from `norm_probe`, with the weights to measure.
      forward: runs one batch through it.
      images: at least one batch, float32, (b, y, x, 1); the same number on every worker.
    """
    variables = [v for layer in _norms(probe) for v in (layer.moving_mean, layer.moving_variance)]
    seen = []
    for image in images:
        forward(image)
        seen.append([np.asarray(v, np.float64) for v in variables])
    for variable, values in zip(variables, zip(*seen, strict=True), strict=True):
        variable.assign(np.mean(values, axis=0).astype(np.float32))


def _norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
