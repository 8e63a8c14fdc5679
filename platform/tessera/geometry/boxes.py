"""Half-open n-d boxes of voxels: the one way in which this project says *where*.

Every reader, writer and scorer takes a `Box`; a start without its stop, or an extent without its origin, is how
off-by-one seams are born.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from operator import gt


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A half-open box of voxels, `start` inside and `stop` outside, axes ordered z, y, x.

    Starts may be negative and stops may pass a volume's edge: such a box asks for mirrored context.

    >>> Box((0, 0, 0), (2, 4, 4)).shape
    (2, 4, 4)
    >>> Box((0, 8), (4, 4))
    Traceback (most recent call last):
    ...
    ValueError: box start (0, 8) passes its stop (4, 4): starts must be at most stops on every axis.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop):
            raise ValueError(f"box start {self.start} and stop {self.stop} have different numbers of axes.")
        if any(map(gt, self.start, self.stop)):  # a driver makes one of each of millions of blocks
            raise ValueError(
                f"box start {self.start} passes its stop {self.stop}: starts must be at most stops on every axis."
            )

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """The box of a whole array of this shape."""
        return cls((0,) * len(shape), tuple(int(n) for n in shape))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent in voxels on each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Slices that read this box from an array anchored at voxel 0.

        Raises:
          ValueError: a start is negative; a negative slice would wrap round to the far end without a word.
        """
        if any(a < 0 for a in self.start):
            raise ValueError(f"box {self} starts before voxel 0 and cannot slice an array: clip or mirror it first.")
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def grown(self, margin: Sequence[int]) -> Box:
        """This box with `margin` voxels more on both sides of each axis.

        >>> Box((4, 4), (8, 8)).grown((1, 2))
        Box(start=(3, 2), stop=(9, 10))
        """
        return Box(
            tuple(a - m for a, m in zip(self.start, margin, strict=True)),
            tuple(b + m for b, m in zip(self.stop, margin, strict=True)),
        )

    def shifted(self, offset: Sequence[int]) -> Box:
        """This box moved by `offset` voxels."""
        return Box(
            tuple(a + o for a, o in zip(self.start, offset, strict=True)),
            tuple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )

    def relative_to(self, origin: Sequence[int]) -> Box:
        """This box in the coordinates of an array whose first voxel is `origin`."""
        return self.shifted([-o for o in origin])

    def clipped(self, other: Box) -> Box:
        """The part of this box inside `other`; of size 0, at `other`'s edge, where they do not meet.

        >>> Box((0,), (10,)).clipped(Box((8,), (20,)))
        Box(start=(8,), stop=(10,))
        >>> Box((0,), (4,)).clipped(Box((8,), (20,))).size
        0
        """
        bounds = zip(self.start, self.stop, other.start, other.stop, strict=True)
        edges = [(min(max(a, lo), hi), min(max(b, lo), hi)) for a, b, lo, hi in bounds]
        return Box(tuple(a for a, _ in edges), tuple(b for _, b in edges))

    def contains(self, other: Box) -> bool:
        """Whether every voxel of `other` is in this box."""
        return all(a <= c for a, c in zip(self.start, other.start, strict=True)) and all(
            d <= b for b, d in zip(self.stop, other.stop, strict=True)
        )

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True)) + "]"
