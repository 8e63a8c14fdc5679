"""The file of a training's reports, whoever is killed while writing it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tessera.workflows.progress import Progress, cut_unfinished_line, following


def test_a_value_that_was_told_before_a_restart_is_not_untold(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.jsonl")
    assert progress.untold(3, {"loss": 0.5}) == {"loss": 0.5}
    progress.append(3, {"loss": 0.5})
    for again in (progress, Progress(progress.path)):
        assert again.untold(3, {"loss": 0.4, "val_v_rand": 0.9}) == {"val_v_rand": 0.9}
        assert again.untold(4, {"loss": 0.4}) == {"loss": 0.4}


def test_what_a_killed_writer_left_unfinished_spoils_no_later_line(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    cut_unfinished_line(path)
    told: list[Any] = []
    with following(path, told.append, every_s=0.01):
        Progress(path).append(2, {"loss": 0.4})
        deadline = time.monotonic() + 30
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    assert told == [{"step": 2, "loss": 0.4}]
