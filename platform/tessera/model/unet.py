"""The Keras graph of the U-Net (Ronneberger, Fischer and Brox 2015, figure 1), in `valid` and `same` padding.

Both paddings have the same layers and the same list of weights: a network trained with one runs with the other.
The graph ends in logits; the loss and the predictor apply the sigmoid where it is numerically safe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import keras
from keras import layers

from tessera.model.spec import UnetSpec


def build_unet(
    spec: UnetSpec,
    *,
    seed: int = 0,
    synchronized: bool = False,
    normalisation: Callable[..., layers.Layer] = layers.BatchNormalization,
) -> keras.Model:
    """Build the graph: (batch, y, x, sections) float32 in, (batch, y', x', 1) float32 logits out.

    Args:
      spec: the network.
      seed: of the initial weights and the dropout masks.
      synchronized: let batch normalisation average its statistics over data-parallel replicas.
      normalisation: the layer that computes it: Keras' own, or for training a faster one with the same weights.
    """
    stage = _Stages(spec, seed, partial(normalisation, momentum=0.95, synchronized=synchronized))
    image = keras.Input((None, None, spec.input_sections), name="image")
    features, skips = image, []
    for level in range(spec.depth):
        features = stage.pair(features, level, f"down{level}")
        if level == spec.depth - 1:
            features = stage.dropout(features, "dropout_skip")
        skips.append(features)
        features = layers.MaxPooling2D(2, name=f"pool{level}")(features)
    features = stage.pair(features, spec.depth, "bottom")
    features = stage.dropout(features, "dropout_bottom")
    for level, crop in zip(reversed(range(spec.depth)), skip_crops(spec.depth), strict=True):
        features = stage.up(features, level)
        skip = skips[level]
        if spec.padding == "valid":
            skip = layers.Cropping2D(crop, name=f"crop{level}")(skip)
        features = layers.Concatenate(name=f"join{level}")([skip, features])
        features = stage.pair(features, level, f"up{level}")
    logits = layers.Conv2D(1, 1, kernel_initializer=stage.initializer(), dtype="float32", name="logits")(features)
    return keras.Model(image, logits, name="unet")


def valid_twin(model: keras.Model, spec: UnetSpec) -> keras.Model:
    """The valid graph that carries `model`'s weights: what inference runs."""
    twin = build_unet(replace(spec, padding="valid", dropout=0.0))
    twin.set_weights(model.get_weights())
    return twin


def skip_crops(depth: int) -> Sequence[int]:
    """Pixels cropped per side from each skip, deepest first.

    >>> skip_crops(4)
    [4, 16, 40, 88]
    """
    crops, lost = [], 2  # per side, at the level's resolution: what the bottom's two convolutions consume
    for _ in range(depth):
        crops.append(2 * lost)
        lost = 2 * lost + 4  # this level's pairs, encoder's and decoder's, consume two more each
    return crops


class _Stages:
    """Layer factories that share the spec, one seed stream and the naming."""

    def __init__(self, spec: UnetSpec, seed: int, norm: Callable[..., layers.Layer]) -> None:
        self.spec, self.seed, self.norm, self.count = spec, seed, norm, 0

    def initializer(self) -> keras.initializers.Initializer:
        # He et al. 2015: Gaussian of variance 2 / fan-in, untruncated as in the paper's section 3.
        self.count += 1
        return keras.initializers.VarianceScaling(
            2.0, "fan_in", "untruncated_normal", seed=self.seed * 1009 + self.count
        )

    def pair(self, features: keras.KerasTensor, level: int, name: str) -> keras.KerasTensor:
        for half in "ab":
            features = self.conv(features, self.spec.filters * 2**level, f"{name}{half}")
        return features

    def conv(self, features: keras.KerasTensor, filters: int, name: str) -> keras.KerasTensor:
        features = layers.Conv2D(
            filters,
            3,
            padding=self.spec.padding,
            use_bias=not self.spec.batch_norm,
            kernel_initializer=self.initializer(),
            name=name,
        )(features)
        if self.spec.batch_norm:
            features = self.norm(name=f"{name}_norm")(features)
        return layers.ReLU(name=f"{name}_relu")(features)

    def up(self, features: keras.KerasTensor, level: int) -> keras.KerasTensor:
        return layers.Conv2DTranspose(
            self.spec.filters * 2**level, 2, strides=2, kernel_initializer=self.initializer(), name=f"rise{level}"
        )(features)

    def dropout(self, features: keras.KerasTensor, name: str) -> keras.KerasTensor:
        if not self.spec.dropout:
            return features
        return layers.Dropout(self.spec.dropout, seed=self.seed, name=name)(features)
