"""A search is refused before it starts where its keys or values cannot be trained, and its trials are fixed by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.settings.keys import accepts, changed
from tessera.settings.spaces import Space
from tessera.settings.train import ResourceSettings, ScheduleSettings, TrainSettings
from tessera.settings.tune import EarlyStopping, TuneSettings, searchable

RATES = {"optimiser.learning_rate": {"log_uniform": [1e-4, 1e-2]}}


def _tune(search: dict[str, Any], **changes: Any) -> TuneSettings:
    return TuneSettings(search, **{"trials": 4} | changes)


@pytest.mark.parametrize(
    ("search", "told"),
    [
        ({}, r"search is not given\. Try --search "),
        ({"network.filtrs": {"grid": [4]}}, r"no setting network\.filtrs to search\. Did you mean network\.filters\?"),
        ({"learning_rate": {"uniform": [1, 2]}}, r"Did you mean optimiser\.learning_rate\?"),
        ({"register_as": {"choice": ["a", "b"]}}, "no setting register_as to search"),
        ({"resources.workers": {"choice": [1, 2]}}, r"no setting resources\.workers to search"),
        ({"data.train.volume": {"choice": ["a"]}}, r"no setting data\.train\.volume to search"),
        ({"network": {"choice": [1]}}, "no setting network to search"),
        ({"seed": 3}, r"search\.seed=3 is no space: give one of \{uniform: \[4, 12\]\}"),
        ({"seed": {"choise": [1, 2]}}, r"there is no space choise\. Did you mean choice\?"),
        ({"seed": {"xyzzy": [1, 2]}}, "There are uniform, log_uniform, int, choice, grid"),
        ({"seed": {"choice": 5}}, r"search\.seed\.choice=5: give a list, such as"),
        ({"seed": {"choice": []}}, r"search\.seed\.choice=\[\]: give a list"),
        ({"seed": {"choice": [1, 1]}}, "holds 1 twice"),
        ({"network.filters": {"choice": [8, "many"]}}, r"'many' is no value of network\.filters: give a whole number"),
        ({"optimiser.name": {"choice": ["rmsprop"]}}, "'rmsprop' is no value of optimiser.name: give one of adam, sgd"),
        ({"network.filters": {"uniform": [4, 8]}}, r"takes a whole number, such as 4\. Try \{int: \[1, 4\]\}"),
        ({"optimiser.name": {"int": [0, 1]}}, "Try choice or grid, with a list"),
        ({"optimiser.learning_rate": {"log_uniform": [0, 1]}}, "a lower and a higher end, above 0, such as"),
        ({"optimiser.learning_rate": {"uniform": [2, 1]}}, "give a lower and a higher end, such as"),
        ({"optimiser.learning_rate": {"uniform": [1]}}, "give a lower and a higher end"),
        ({"network.depth": {"int": [1, 2.5]}}, "give a lower and a higher end"),
        (
            {"network.filters": {"grid": [0, 4]}},
            r"filters=0 is among the combinations.*filters=0: .*[Tt]ry 32",
        ),
        (
            {"network.depth": {"grid": [2, 3]}, "schedule.crop_px": {"choice": [192, 196]}},
            r"network\.depth=3, schedule\.crop_px=196 is among the combinations, and cannot be trained: .*crop_px",
        ),
    ],
)
def test_a_search_that_could_not_be_trained_is_refused(search: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        _tune(search)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"trials": 0},
            r"trials is not given, and optimiser\.learning_rate would be drawn without end\. Try --trials 8",
        ),
        ({"trials": -1}, "trials=-1 and concurrent=0 must not be negative"),
        ({"name": "a/b"}, r"name='a/b' becomes a folder: .*Try rates-1\."),
        ({"seed": -1}, "give 0 to 2"),
        ({"train": TrainSettings(name="mine")}, "train.name=mine: trials are named after the search"),
        ({"train": TrainSettings(refit="mine")}, "train.refit=mine: a refit holds nothing out"),
        (
            {"train": TrainSettings(resources=ResourceSettings(workers="2-8"))},
            r"workers=2-8: a trial that grows would take .*Give --train\.resources\.workers 2\.",
        ),
        (
            {"early_stopping": EarlyStopping("asha", 200)},
            r"not validated between the grace and their end.*grace_steps 60 --train\.schedule\.checkpoint_every 60\.",
        ),
    ],
)
def test_what_would_fail_or_mislead_later_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        _tune(RATES, **changes)


def test_early_stopping_that_stops_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"factor=1 at least 2.*Try 100 and 3\."):
        EarlyStopping("asha", factor=1)


@pytest.mark.parametrize(
    ("trials", "told"), [(2, "fewer than the grid's 3"), (5, "would repeat them to the last digit")]
)
def test_a_grid_is_tried_as_a_whole_and_once(trials: int, told: str) -> None:
    search = {"network.filters": {"grid": [4, 8, 16]}}
    assert [point["network.filters"] for point in _tune(search, trials=0).points] == [4, 8, 16]
    with pytest.raises(ValueError, match=told):
        _tune(search, trials=trials)


def test_the_proposed_early_stopping_is_accepted() -> None:
    base = TrainSettings(schedule=ScheduleSettings(steps=240, checkpoint_every=60))
    assert _tune(RATES, train=base, early_stopping=EarlyStopping("asha", 60)).mode == "max"


def test_errors_are_searched_for_their_least() -> None:
    modes = {metric: _tune(RATES, metric=metric).mode for metric in ("val_v_rand", "val_pixel_error")}
    assert modes == {"val_v_rand": "max", "val_pixel_error": "min"}


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_a_longer_search_begins_with_the_trials_of_a_shorter_one(count: int, more: int, seed: int) -> None:
    short, long = (_tune(RATES, trials=n, seed=seed).points for n in (count, count + more))
    assert long[:count] == short
    # Values are rounded, so that two of them may meet.
    assert len({str(point) for point in long}) >= len(long) - 2, "each trial draws anew"


@given(st.floats(1e-6, 1.0), st.floats(1.5, 1e4), st.integers(0, 2**32 - 1))
def test_draws_stay_between_their_ends(low: float, ratio: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for kind in ("uniform", "log_uniform"):
        assert low <= Space(kind, (low, low * ratio)).draw(rng) <= low * ratio
    assert Space("int", (2, 4)).draw(rng) in (2, 3, 4)
    assert Space("choice", ("a", "b")).draw(rng) in ("a", "b")


def test_draws_reach_both_ends_and_a_log_scale_is_even_over_magnitudes() -> None:
    rng = np.random.default_rng(0)
    assert {Space("int", (1, 3)).draw(rng) for _ in range(100)} == {1, 2, 3}
    drawn = [Space("log_uniform", (1e-4, 1.0)).draw(rng) for _ in range(2000)]
    assert 0.45 < np.mean(np.array(drawn) < 1e-2) < 0.55


def test_every_searchable_setting_takes_its_own_value_back() -> None:
    base = TrainSettings()
    for key, hint in searchable().items():
        value: Any = base
        for part in key.split("."):
            value = getattr(value, part)
        assert accepts(hint, value), key
        assert changed(base, {key: value}) == base


def test_values_that_depend_on_each_other_are_changed_together() -> None:
    base = TrainSettings(schedule=ScheduleSettings(crop_px=196), network=replace(TrainSettings().network, depth=2))
    both = changed(base, {"network.depth": 4, "schedule.crop_px": 192})
    assert (both.network.depth, both.schedule.crop_px) == (4, 192)
    with pytest.raises(ValueError, match="crop_px"):
        changed(base, {"network.depth": 4})
