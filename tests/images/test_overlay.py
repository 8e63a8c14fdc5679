"""A grid that is drawn over a warped crop lies where the section's own pixels went."""

from __future__ import annotations

import numpy as np

from tessera.images.elastic import elastic_field
from tessera.images.overlay import painted, section_grid


def _map(y0: float, x0: float, extent: int) -> np.ndarray:
    y, x = np.meshgrid(np.arange(extent) + y0, np.arange(extent) + x0, indexing="ij")
    return np.stack([y, x]).astype(np.float32)


def test_an_unwarped_crop_has_straight_lines_at_the_section_s_multiples() -> None:
    lines = section_grid(_map(10, 20, 40), 16)
    rows, columns = np.flatnonzero(lines.all(axis=1)), np.flatnonzero(lines.all(axis=0))
    assert [10 + int(row) for row in rows] == [15, 31, 47], "before the section's rows 16, 32 and 48"
    assert [20 + int(column) for column in columns] == [31, 47]
    assert lines.sum() == 3 * 40 + 2 * 40 - 3 * 2


def test_a_warped_crop_shows_every_pixel_of_the_section_s_square_inside_its_lines() -> None:
    """Between lines all pixels are of one square; a neighbour of another square has a line between."""
    warped = _map(0, 0, 64) + elastic_field(np.random.default_rng(3), (64, 64), 4.0)
    lines, squares = section_grid(warped, 16), np.floor(warped / 16)
    right = (squares[:, :, 1:] != squares[:, :, :-1]).any(axis=0)
    below = (squares[:, 1:] != squares[:, :-1]).any(axis=0)
    assert lines[:, :-1][right].all() and lines[:-1][below].all()
    crossed = np.zeros_like(lines)
    crossed[:, :-1] |= right
    crossed[:-1] |= below
    assert not lines[~crossed].any()
    assert not (lines.all(axis=1).any() or lines.all(axis=0).any()), "no line is straight any more"


def test_painting_touches_nothing_else() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    where = grey % 3 == 0
    rgb = painted(grey, where, (255, 200, 0))
    assert (rgb[where] == (255, 200, 0)).all()
    assert (rgb[~where] == grey[~where][:, None]).all()
