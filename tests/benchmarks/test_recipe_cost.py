"""A rehearsal takes the recipe's own steps, and extrapolates to all of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from recipe_cost import Timings, extrapolated, main

from tessera.settings.train import InferenceSettings, ScheduleSettings, TrainSettings

RECIPE = """
network: {filters: 2, depth: 1, padding: valid, dropout: 0.0, input_sections: 3}
schedule: {steps: 7200, batch: 2, crop_px: 44, checkpoint_every: 3600}
"""


def test_hours_are_those_of_all_steps_and_all_validations() -> None:
    settings = TrainSettings(schedule=ScheduleSettings(steps=7200, checkpoint_every=5000))
    settings = replace(settings, inference=InferenceSettings(symmetries=8))
    told = extrapolated(settings, Timings([0.5] * 3, [60.0, 1.0, 3.0], section=10.0), held_out=9)
    assert told["seconds_per_step"] == 2.0, "the first step builds the graph"
    assert told["hours_of_steps"] == 4.0
    assert told["hours_of_validation"] == pytest.approx(2 * 9 * 8 * 10 / 3600)
    assert told["hours"] == pytest.approx(4.4)


def test_a_recipe_is_rehearsed_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text(RECIPE)
    assert main([str(config), "--steps", "2", "--size", "64", "--schedule.batch", "1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["rehearsed_seconds"]) == 2
    assert told["steps"] == 7200
    assert told["changed"] == ["--schedule.batch", "1"]
    assert told["seconds_of_it_sampling"] > 0
    assert told["seconds_per_step"] > 0
    assert told["hours"] == pytest.approx(2 * told["seconds_per_step"] + told["hours_of_validation"])
    assert told["peak_memory_gib"] > 0.05
