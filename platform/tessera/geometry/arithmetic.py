"""U-Net arithmetic: legal sizes, halo and phase of a network, derived from its layer records.

A halo that is typed in is a halo that is wrong after the next change of depth. Everything here is folded over the
records of the layers on the longest path, once per axis (z, y, x), for the *valid* graph: that is the graph which
inference builds, whatever padding training used.

    input   |<-- margin -->|<------- output ------->|<-- margin -->|
            origin         origin + margin
    Pooling windows must start on the grid anchored at voxel 0 of the volume, or two tilings pool different pairs of
    voxels and disagree: an input's origin is therefore `phase` modulo `period`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tessera.geometry.boxes import Box

Kind = Literal["conv", "pool", "up"]
Padding = Literal["valid", "same"]


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One layer on the network's longest path; kernel and stride are per axis, z, y, x.

    `padding` says how the layer was trained; the arithmetic is that of the valid graph either way.
    """

    kind: Kind
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: Padding

    def __post_init__(self) -> None:
        if self.kind not in ("conv", "pool", "up"):
            raise ValueError(f"layer kind {self.kind!r} is unknown: a halo can be derived for conv, pool and up only.")
        if self.kind == "conv" and (any(k % 2 == 0 for k in self.kernel) or set(self.stride) != {1}):
            raise ValueError(
                f"a conv of kernel {self.kernel}, stride {self.stride} has no centre voxel or skips voxels: "
                "its margin would differ between sides. Use odd kernels and stride 1."
            )
        if self.kind != "conv" and self.kernel != self.stride:
            raise ValueError(
                f"{self.kind} kernel {self.kernel} differs from its stride {self.stride}: windows would overlap or "
                f"leave gaps. Try kernel={self.stride}."
            )


@dataclass(frozen=True, slots=True)
class AxisArithmetic:
    """What one axis of a network asks of its input.

    Attributes:
      period: input origins are `phase` modulo this many voxels.
      phase: see `period`.
      margin: voxels the valid graph consumes on each side.
      size_residue: input sizes are this modulo `period`.
      min_input: the smallest legal input.
    """

    period: int
    phase: int
    margin: int
    size_residue: int
    min_input: int

    @property
    def halo(self) -> int:
        """Context to read on each side of useful voxels whose origin is a multiple of `period`.

        The smallest one that covers the margin and keeps the phase.
        """
        return self.margin + (-self.phase - self.margin) % self.period

    @property
    def crop(self) -> int:
        """Output voxels per side to throw away: the halo's surplus over the margin."""
        return self.halo - self.margin

    def is_legal_input(self, size: int) -> bool:
        """Whether the valid graph accepts this input extent."""
        return size >= self.min_input and size % self.period == self.size_residue % self.period

    def nearest_legal_input(self, size: int) -> int:
        """The legal input extent closest to `size`, the smaller one of two.

        >>> fold(unet_records(depth=4)).axes[1].nearest_legal_input(570)
        572
        """
        below = size - (size - self.size_residue) % self.period
        candidates = [max(n, self.min_input) for n in (below, below + self.period)]
        return min(candidates, key=lambda n: (abs(n - size), n))

    def useful_extent(self, extent: int) -> int:
        """The smallest multiple of `period` that covers `extent` voxels and has a legal input."""
        useful = -(-extent // self.period) * self.period
        while useful + 2 * self.halo < self.min_input:
            useful += self.period
        return useful


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The arithmetic of a network on its three axes, z, y, x."""

    axes: tuple[AxisArithmetic, AxisArithmetic, AxisArithmetic]

    @property
    def halo(self) -> tuple[int, ...]:
        """Context per side, z, y, x, in voxels."""
        return tuple(a.halo for a in self.axes)

    @property
    def crop(self) -> tuple[int, ...]:
        """Surplus output voxels per side, z, y, x."""
        return tuple(a.crop for a in self.axes)

    @property
    def period(self) -> tuple[int, ...]:
        """Useful origins are multiples of this, z, y, x."""
        return tuple(a.period for a in self.axes)

    def input_box(self, useful: Box) -> Box:
        """The input that yields `useful`, whose start and shape are multiples of `period`."""
        return useful.grown(self.halo)

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """What the valid graph gives for an input of this extent.

        >>> fold(unet_records(depth=4)).output_shape((1, 572, 572))
        (1, 388, 388)

        Raises:
          ValueError: an extent is illegal; the nearest legal one is named.
        """
        for name, axis, size in zip("zyx", self.axes, input_shape, strict=True):
            if not axis.is_legal_input(size):
                raise ValueError(
                    f"input extent {size} on axis {name} is illegal: a pooling window would be cut in half. "
                    f"Try {axis.nearest_legal_input(size)}."
                )
        return tuple(n - 2 * a.margin for n, a in zip(input_shape, self.axes, strict=True))


def fold(records: Iterable[LayerRecord]) -> Arithmetic:
    """Derive a network's arithmetic from the layers on its longest path.

    >>> fold(unet_records(depth=4)).halo
    (0, 94, 94)

    Raises:
      ValueError: the path does not return to the input's resolution.
    """
    records = tuple(records)
    z, y, x = (_fold_axis([(r.kind, r.kernel[i], r.stride[i]) for r in records]) for i in range(3))
    return Arithmetic((z, y, x))


def _fold_axis(layers: Sequence[tuple[Kind, int, int]]) -> AxisArithmetic:
    scale, margin, period = 1, 0, 1
    origin_rules: list[tuple[int, int]] = []  # (modulus, voxels from the input's origin to a pooling window's start)
    smallest = 0  # the least input with at least one voxel at every level
    for kind, kernel, stride in layers:
        if kind == "conv":
            margin += (kernel - 1) // 2 * scale
        elif kind == "pool":
            scale *= stride
            period = max(period, scale)
            origin_rules.append((scale, margin))
        else:
            scale //= stride
        smallest = max(smallest, 2 * margin + scale)
    if scale != 1:
        raise ValueError(f"the layers end at 1/{scale} of the input's resolution: each pool needs an up of its stride.")
    phase = next(o for o in range(period) if all((o + m) % s == 0 for s, m in origin_rules))
    residue = next(n for n in range(period) if all((n - 2 * m) % s == 0 for s, m in origin_rules))
    minimum = smallest + (residue - smallest) % period
    return AxisArithmetic(period, phase, margin, residue, minimum)


def unet_records(depth: int, padding: Padding = "valid", input_sections: int = 1) -> tuple[LayerRecord, ...]:
    """The longest path of a U-Net (Ronneberger 2015, figure 1) with `depth` poolings, all of them in the plane.

    Neighbouring sections as input channels are what a first convolution of that depth on z reads, without padding.

    >>> len(unet_records(depth=1))
    8
    >>> fold(unet_records(depth=1, input_sections=5)).halo
    (2, 8, 8)

    Args:
      depth: number of poolings.
      padding: in the plane, as trained.
      input_sections: sections that the first convolution reads, odd; 1 leaves z untouched.
    """

    def layer(kind: Kind, size: int, sections: int = 1) -> LayerRecord:
        return LayerRecord(kind, (sections, size, size), (1, 1, 1) if kind == "conv" else (1, size, size), padding)

    pair = [layer("conv", 3), layer("conv", 3)]
    down = [record for _ in range(depth) for record in (*pair, layer("pool", 2))]
    up = [record for _ in range(depth) for record in (layer("up", 2), *pair)]
    return (layer("conv", 3, input_sections), *down[1:], *pair, *up)
