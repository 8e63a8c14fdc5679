"""Recipes that promise to be someone else's are checked against what that source says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessera.cli.main import parse
from tessera.images.augment import draw_sampling_map, rng_for

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def _recipe(name: str) -> Any:
    return parse(["train", "--config", str(CONFIGS / name)])[1]


def test_the_paper_s_recipe_has_the_numbers_of_ronneberger_2015() -> None:
    recipe = _recipe("isbi2012-paper.yaml")
    network, optimiser, loss = recipe.network, recipe.optimiser, recipe.loss
    assert (network.filters, network.depth, network.padding) == (64, 4, "valid")
    assert not network.batch_norm and network.dropout > 0
    assert (network.input_extent(recipe.schedule.crop_px), recipe.schedule.crop_px) == (572, 388)
    assert (optimiser.name, optimiser.momentum, recipe.schedule.batch) == ("sgd", 0.99, 1)
    assert (loss.w0, loss.sigma_px, loss.class_balance, loss.dice) == (10.0, 5.0, True, 0.0)
    assert recipe.inference.symmetries == 8


def test_the_paper_s_recipe_displaces_three_by_three_nodes_by_ten_pixels() -> None:
    """Taken from maps of its samples at the outer nodes, with rotation switched off."""
    recipe = _recipe("isbi2012-paper.yaml").augmentation
    upright = type(recipe)(elastic_sigma_px=recipe.elastic_sigma_px, elastic_grid=recipe.elastic_grid)
    assert recipe.elastic_spacing_px == 0, "the grid is 3 x 3 whatever the crop"
    still = [draw_sampling_map(rng_for(1, i), (572, 572), (572, 572), type(recipe)()) for i in range(20)]
    moved = [draw_sampling_map(rng_for(1, i), (572, 572), (572, 572), upright) for i in range(20)]
    corners = np.stack([(b - a)[:, ::571, ::571] for a, b in zip(still, moved, strict=True)])
    assert corners.std() == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("name", ["isbi2012-paper.yaml", "isbi2012-gpu.yaml", "cremi.yaml"])
def test_a_recipe_that_was_not_run_says_so(name: str) -> None:
    assert "# Score: not measured." in (CONFIGS / name).read_text()
