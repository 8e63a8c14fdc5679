"""Training groups on Ray Train: which failures are tried again, and which end the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera.engine.train import FinalError, TrainGroup, run_group


def _attempted(config: dict[str, Any]) -> None:
    with Path(config["attempts"]).open("a") as file:
        file.write("x")


def _fail_for_good(config: dict[str, Any]) -> None:
    _attempted(config)
    raise FinalError("sample 7 is no image")


def _fail(config: dict[str, Any]) -> None:
    _attempted(config)
    raise ValueError("the node went away")


@pytest.mark.parametrize(
    ("loop", "told", "attempts"),
    [
        (_fail_for_good, r"^training doomed failed: sample 7 is no image$", 1),
        pytest.param(_fail, r"training doomed failed: .*the node went away", 2, marks=pytest.mark.slow),
    ],
)
def test_a_final_failure_is_not_tried_again(
    ray_session: None, tmp_path: Path, loop: Callable[[dict[str, Any]], None], told: str, attempts: int
) -> None:
    group = TrainGroup("doomed", tmp_path / "runs", workers=1, cpus_per_worker=0.5, max_failures=1)
    with pytest.raises(RuntimeError, match=told):
        run_group(loop, {"attempts": str(tmp_path / "attempts")}, group, lambda metrics, checkpoint: None)
    assert (tmp_path / "attempts").read_text() == "x" * attempts
