"""What a person looks at is what was computed, pixel for pixel."""

from __future__ import annotations

import numpy as np

from tessera.tracking.pictures import contact_sheet
from volumes import grey


def _find(sheet: np.ndarray, panel: np.ndarray) -> tuple[int, int]:
    """Where a panel lies in a sheet; fails where it is not there unchanged."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], panel.shape)
    places = np.argwhere((windows[:, :, ::37, ::41] == panel[::37, ::41]).all(axis=(2, 3)))
    exact = [tuple(p) for p in places if (windows[tuple(p)] == panel).all()]
    assert len(exact) == 1, f"found {len(exact)} times"
    return int(exact[0][0]), int(exact[0][1])


def test_panels_keep_every_pixel_and_their_order() -> None:
    rows = [{"raw": grey((260, 300), seed), "truth": grey((260, 300), seed + 10)} for seed in (1, 2)]
    sheet = contact_sheet(rows, ["section 3", "section 4"])
    places = [[_find(sheet, panel) for panel in row.values()] for row in rows]
    assert places[0][0][0] == places[0][1][0] < places[1][0][0] == places[1][1][0], "a row per section"
    assert places[0][0][1] == places[1][0][1] < places[0][1][1] == places[1][1][1], "a column per kind"


def test_small_panels_grow_by_whole_numbers_and_probabilities_span_black_to_white() -> None:
    ramp = np.linspace(0, 1, 40 * 100, dtype=np.float32).reshape(40, 100)
    sheet = contact_sheet([{"probability": ramp}], ["section 0"])
    expected = np.rint(ramp * 255).astype(np.uint8).repeat(3, axis=0).repeat(3, axis=1)
    _find(sheet, expected)


def test_a_sheet_has_captions() -> None:
    panel = {"raw": np.full((256, 256), 255, np.uint8)}
    assert (contact_sheet([panel], ["section 7"])[:28] < 128).any(), "the column's title"
    assert (contact_sheet([panel], ["section 7"])[28:, :28] < 128).any(), "the row's"
