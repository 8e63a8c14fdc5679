"""What a pass of a network costs: operations and bytes, for any input, derived from its layers.

A halo is computed and thrown away, so a small tile wastes more of its operations than a large one; a large one holds
more activations. Both are integers that follow from the layers' sizes and channels, and so can be weighed before
anything runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.arithmetic import LayerRecord, Padding, unet_records

FLOAT_BYTES = 4
Counts = np.int64 | NDArray[np.int64]
"""One number of voxels, operations or bytes, or an array of them."""


@dataclass(frozen=True, slots=True)
class LayerWork:
    """One layer on the longest path, with the channels that it reads and gives.

    Attributes:
      record: kind, kernel and stride.
      channels_in: read, those that join from a skip included.
      channels_out: given.
      joined: of `channels_in`, how many come from the contracting path, cropped; 0 where none do.
    """

    record: LayerRecord
    channels_in: int
    channels_out: int
    joined: int = 0

    @property
    def flops_per_voxel(self) -> int:
        """Multiplications and additions for one output voxel, all channels."""
        if self.record.kind == "pool":
            return 0
        # An up-convolution's windows do not overlap: each output voxel has one input voxel and one weight.
        taps = prod(self.record.kernel) if self.record.kind == "conv" else 1
        return 2 * taps * self.channels_in * self.channels_out

    @property
    def weights(self) -> int:
        """Numbers it learned, biases left out."""
        return 0 if self.record.kind == "pool" else prod(self.record.kernel) * self.channels_in * self.channels_out


@dataclass(frozen=True, slots=True)
class NetworkCost:
    """A network's layers, and what they cost."""

    layers: tuple[LayerWork, ...]

    @property
    def weight_bytes(self) -> int:
        """Of its weights, float32."""
        return FLOAT_BYTES * sum(layer.weights for layer in self.layers)

    def flops(self, input_shape: Sequence[int]) -> int:
        """Operations of one pass.

        >>> unet_cost(depth=4, filters=32).flops((1, 572, 572)) // 10**9
        75

        Args:
          input_shape: z, y, x, voxels, legal.
        """
        return int(self.flops_of(_counted(input_shape)))

    def activation_bytes(self, input_shape: Sequence[int]) -> int:
        """The most that arrays between layers take at once: a layer's input and output, and the skips that wait.

        Skips wait cropped: the crop is computed as soon as they are there. Where one joins, it, what it joins and the
        two together are there at once.

        Args:
          input_shape: z, y, x, voxels, legal.
        """
        return int(self.activation_bytes_of(_counted(input_shape)))

    def flops_of(self, input_shape: Sequence[Counts]) -> Counts:
        """`flops` of many shapes at once: arrays per axis, which broadcast against each other."""
        total: Counts = np.int64(0)
        for layer, shape in zip(self.layers, self._shapes(input_shape), strict=True):
            total = total + layer.flops_per_voxel * _voxels(shape)
        return total

    def activation_bytes_of(self, input_shape: Sequence[Counts]) -> Counts:
        """`activation_bytes` of many shapes at once."""
        voxels = [_voxels(shape) for shape in self._shapes(input_shape)]
        joins = [voxels[at - 1] * layer.joined for at, layer in enumerate(self.layers) if layer.joined]
        waiting: list[Counts] = []
        held: Counts = np.int64(0)
        most: Counts = np.int64(0)
        given = _voxels(input_shape) * self.layers[0].channels_in
        for layer, own in zip(self.layers, voxels, strict=True):
            got = own * layer.channels_out
            if layer.record.kind == "pool":
                waiting.append(joins[-1 - len(waiting)])
                held = held + waiting[-1]
            if layer.joined:
                skip = waiting.pop()
                held = held - skip
                most = np.maximum(most, held + 2 * (skip + given))
                given = skip + given
            most = np.maximum(most, held + given + got)
            given = got
        return FLOAT_BYTES * most

    def _shapes(self, input_shape: Sequence[Counts]) -> list[tuple[Counts, ...]]:
        """What each layer gives, z, y, x."""
        found, shape = [], tuple(input_shape)
        for layer in self.layers:
            sides = zip(shape, layer.record.kernel, layer.record.stride, strict=True)
            if layer.record.kind == "conv":
                shape = tuple(extent - (kernel - 1) for extent, kernel, _ in sides)
            elif layer.record.kind == "pool":
                shape = tuple(extent // stride for extent, _, stride in sides)
            else:
                shape = tuple(extent * stride for extent, _, stride in sides)
            found.append(shape)
        return found


def _voxels(shape: Sequence[Counts]) -> Counts:
    z, y, x = shape
    return z * y * x


def _counted(shape: Sequence[int]) -> tuple[Counts, ...]:
    return tuple(np.int64(extent) for extent in shape)


def unet_cost(depth: int, filters: int, input_sections: int = 1, padding: Padding = "valid") -> NetworkCost:
    """The cost of a U-Net (Ronneberger 2015, figure 1) whose channels double at each pooling.

    >>> [layer.channels_in for layer in unet_cost(depth=1, filters=8).layers]
    [1, 8, 8, 8, 16, 16, 16, 8, 8]

    Args:
      depth: number of poolings.
      filters: channels of the first level.
      input_sections: sections that the first convolution reads.
      padding: as trained; the cost is that of the valid graph.
    """
    return NetworkCost(tuple(_with_channels(unet_records(depth, padding, input_sections), filters)))


def _with_channels(records: Iterable[LayerRecord], filters: int) -> Iterable[LayerWork]:
    level, channels, joining = 0, 1, 0
    for record in records:
        if record.kind == "pool":
            yield LayerWork(record, channels, channels)
            level += 1
            continue
        level -= record.kind == "up"
        wide = filters * 2**level
        yield LayerWork(record, channels + joining, wide, joining)
        channels, joining = wide, wide if record.kind == "up" else 0
    yield LayerWork(LayerRecord("conv", (1, 1, 1), (1, 1, 1), "valid"), channels, 1)
