"""The symmetries of the square: the ways to lay a section on itself, for averaging over them.

Tissue has no up or down in a section, yet a network sees each orientation a little differently. Averaging what it says
of all of them removes that part of its error (Ronneberger, Fischer and Brox 2015, section 4: seven rotated versions of
the input). Nothing is interpolated: each symmetry is a permutation of pixels, and is undone exactly.

    8   turns by 0, 90, 180, 270 degrees, each with and without a flip
    4   the flips alone: as is, x, y, and both (a turn by 180 degrees); all that pixels with y != x allow
    1   as is
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SymmetryCount = Literal[1, 4, 8]


@dataclass(frozen=True, slots=True)
class Symmetry:
    """One symmetry: first the flip of x, then the turns.

    >>> letter = np.array([[1, 0], [1, 1]])[..., np.newaxis]
    >>> Symmetry(turns=1, flip=False).apply(letter)[..., 0].tolist()
    [[0, 1], [1, 1]]

    Attributes:
      turns: by 90 degrees each, counter-clockwise as a section is shown, 0 to 3; an odd number swaps y and x extents.
      flip: whether x is mirrored first.
    """

    turns: int
    flip: bool

    def apply(self, images: NDArray[Any]) -> NDArray[Any]:
        """A view of `images`, (..., y, x, c), laid down this way."""
        flipped = np.flip(images, -2) if self.flip else images
        return np.rot90(flipped, self.turns, axes=(-3, -2))

    def invert(self, images: NDArray[Any]) -> NDArray[Any]:
        """A view of what `apply` gave, as it was before."""
        turned = np.rot90(images, -self.turns, axes=(-3, -2))
        return np.flip(turned, -2) if self.flip else turned


_SQUARE = tuple(Symmetry(turns, flip) for flip in (False, True) for turns in range(4))
_SUBSETS: dict[int, tuple[Symmetry, ...]] = {
    1: _SQUARE[:1],
    4: tuple(symmetry for symmetry in _SQUARE if symmetry.turns % 2 == 0),
    8: _SQUARE,
}


def symmetries_of(count: SymmetryCount) -> tuple[Symmetry, ...]:
    """The symmetries that `count` stands for, the identity first. Each such set is a group.

    >>> symmetries_of(1)
    (Symmetry(turns=0, flip=False),)

    Raises:
      ValueError: no set here has that many.
    """
    if count not in _SUBSETS:
        raise ValueError(
            f"symmetries={count}: there are 1 (as is), 4 (flips) and 8 (flips and turns by 90 degrees); any other "
            "set would prefer some orientations. Try symmetries=8."
        )
    return _SUBSETS[count]


def check_square(count: SymmetryCount, voxel_size_nm: Sequence[float]) -> None:
    """Refuse turns by 90 degrees of pixels that are not square.

    Args:
      count: of symmetries, see `symmetries_of`.
      voxel_size_nm: z, y, x.

    Raises:
      ValueError: a turn would show the network tissue stretched in another direction than it was; or no such count.
    """
    turned = any(symmetry.turns % 2 for symmetry in symmetries_of(count))
    _, y, x = voxel_size_nm
    if turned and not np.isclose(y, x):
        raise ValueError(
            f"symmetries={count} turns sections by 90 degrees, and voxels of {y:g} x {x:g} nm (y, x) are not square: "
            "the network would see cells stretched the wrong way. Try symmetries=4, the flips alone."
        )
