"""Settings of `tessera tune`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, get_args, get_origin

from tessera.settings.keys import changed, hints_of, is_settings, nearest
from tessera.settings.spaces import Space, combinations, draw_points, parse_space
from tessera.settings.train import TrainSettings

Metric = Literal["val_v_rand", "val_v_info", "val_pixel_error", "val_rand_error"]
Mode = Literal["max", "min"]

# What names a run, or says where it runs, is the search's own affair; what lists hold has no key of its own.
_NOT_SEARCHED = ("name", "refit", "register_as", "tracking", "resources")
_MOST_COMBINATIONS = 10_000


@dataclass(frozen=True)
class EarlyStopping:
    """Whether trials that fall behind are stopped before their end.

    Args:
      name: none runs each trial to its end; asha is asynchronous successive halving (Li et al. 2020), which compares
        trials at validations.
      grace_steps: optimiser steps that each trial gets before it may be stopped.
      factor: one in so many trials goes on from each comparison to the next, that many times later.
    """

    name: Literal["none", "asha"] = "none"
    grace_steps: int = 100
    factor: int = 3

    def __post_init__(self) -> None:
        if self.grace_steps < 1 or self.factor < 2:
            raise ValueError(
                f"early_stopping.grace_steps={self.grace_steps} must be at least 1 and factor={self.factor} at least "
                "2: a factor of 1 stops nothing. Try 100 and 3."
            )


@dataclass(frozen=True)
class TuneSettings:
    """Search for better training settings, each trial a training of its own; nothing is registered.

    Args:
      search: which settings are tried with which values: a key of train, and one of uniform, log_uniform, int, choice
        and grid, with its values.
      train: settings of all trials, as `tessera train` takes them, or a file of them.
      name: of the search; its folder is TESSERA_HOME/searches/NAME; null makes one from the settings, so that the same
        command goes on with the same search.
      trials: how many; 0 runs each combination of grid values once.
      concurrent: trials at once; 0 chooses by the cluster's GPUs, else by its cores.
      metric: what is compared, on the held-out sections after a trial's last step.
      early_stopping: whether trials that fall behind are stopped.
      seed: of the values drawn; each training has the seed of its own settings.
    """

    search: dict[str, Any] = field(default_factory=dict)
    train: TrainSettings = field(default_factory=TrainSettings)
    name: str | None = None
    trials: int = 0
    concurrent: int = 0
    metric: Metric = "val_v_rand"
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    seed: int = 2015

    def __post_init__(self) -> None:
        if not self.search:
            raise ValueError(
                "search is not given. Try --search '{optimiser.learning_rate: {log_uniform: [1e-4, 1e-2]}}'."
            )
        self._check_names()
        spaces = self.spaces
        self._check_listed_values(spaces)
        self._check_counts(spaces)
        self._check_stopping()

    @property
    def spaces(self) -> dict[str, Space]:
        """The space of each key that is searched."""
        known = searchable()
        for key in self.search:
            if key not in known:
                raise ValueError(f"search: train has no setting {key} to search. {nearest(key, known)}")
        return {key: parse_space(key, known[key], given) for key, given in self.search.items()}

    @property
    def points(self) -> list[dict[str, Any]]:
        """The searched settings of each trial, by dotted key."""
        spaces = self.spaces
        grid = prod(len(space.values) for space in spaces.values() if space.kind == "grid")
        return draw_points(spaces, self.trials or grid, self.seed)

    @property
    def mode(self) -> Mode:
        """Whether more of the metric is better."""
        return "min" if self.metric.endswith("error") else "max"

    def _check_names(self) -> None:
        if self.name is not None and not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                f"name={self.name!r} becomes a folder: use letters, digits, '-', '_' and '.' only, and no '.' or '-' "
                "first. Try rates-1."
            )
        for key in ("name", "refit"):
            if (given := getattr(self.train, key)) is not None:
                why = "trials are named after the search" if key == "name" else "a refit holds nothing out to compare"
                raise ValueError(f"train.{key}={given}: {why}. Leave it out, or give --train.{key} null.")
        if self.train.resources.is_elastic:
            given, least = self.train.resources.workers, self.train.resources.worker_range[0]
            raise ValueError(
                f"train.resources.workers={given}: a trial that grows would take the CPUs of trials beside it, and "
                f"they would wait for each other. Give --train.resources.workers {least}."
            )

    def _check_counts(self, spaces: Mapping[str, Space]) -> None:
        grid = prod(len(space.values) for space in spaces.values() if space.kind == "grid")
        drawn = [key for key, space in spaces.items() if space.kind != "grid"]
        if self.trials < 0 or self.concurrent < 0:
            raise ValueError(
                f"trials={self.trials} and concurrent={self.concurrent} must not be negative. Try 8 and 0."
            )
        if drawn and not self.trials:
            raise ValueError(
                f"trials is not given, and {', '.join(drawn)} would be drawn without end. Try --trials {max(8, grid)}."
            )
        if 0 < self.trials < grid:
            raise ValueError(
                f"trials={self.trials} are fewer than the grid's {grid} combinations: some would never be tried. Try "
                f"--trials {grid}, or shorter lists."
            )
        if not drawn and self.trials > grid:
            raise ValueError(
                f"trials={self.trials} of a grid of {grid} combinations: the others would repeat them to the last "
                "digit. Try --trials 0, or add seed to the search."
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} does not fit the generators: give 0 to 2^32 - 1.")

    def _check_listed_values(self, spaces: Mapping[str, Space]) -> None:
        listed = {key: space for key, space in spaces.items() if space.listed}
        if prod(len(space.values) for space in listed.values()) > _MOST_COMBINATIONS:
            listed = {}  # those that are drawn are checked when their trial begins
        for values in combinations(listed, ["choice", "grid"]):
            try:
                changed(self.train, values)
            except ValueError as error:
                told = ", ".join(f"{key}={value}" for key, value in values.items())
                raise ValueError(
                    f"search: {told} is among the combinations, and cannot be trained: {error} Its trial would fail: "
                    "take such a value out of the lists."
                ) from None

    def _check_stopping(self) -> None:
        schedule, grace = self.train.schedule, self.early_stopping.grace_steps
        if self.early_stopping.name == "none" or any(key.startswith("schedule.") for key in self.search):
            return
        first = -(-grace // schedule.checkpoint_every) * schedule.checkpoint_every
        if first >= schedule.steps:
            quarter = max(1, schedule.steps // 4)
            raise ValueError(
                f"early_stopping.name=asha with grace_steps={grace} and train.schedule.checkpoint_every="
                f"{schedule.checkpoint_every}: trials of {schedule.steps} steps are not validated between the grace "
                f"and their end, so none would be stopped. Try --early_stopping.grace_steps {quarter} "
                f"--train.schedule.checkpoint_every {quarter}."
            )


def searchable() -> dict[str, Any]:
    """Dotted keys of training settings that a search may vary, with their types."""
    hints = dict(hints_of(TrainSettings))
    lists = [key for key, hint in hints.items() if get_origin(hint) is list]
    return {
        key: hint
        for key, hint in hints.items()
        if key.split(".", 1)[0] not in _NOT_SEARCHED
        and not any(is_settings(kind) for kind in (hint, *get_args(hint)))
        and not any(key.startswith(f"{name}.") for name in lists)
    }
