"""Training groups whose processes are killed: real workers and a real controller, with a loop that needs no network."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray.train
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from tessera.engine.checkpoints import HEARD, LIST, last_heard, mend, without_room, write_checkpoint
from tessera.engine.train import TrainGroup, last_checkpoint, rank_and_world, report, run_group

STEPS, EVERY = 24, 4


def _value(before: float, step: int) -> float:
    """What a step makes of what it finds: any step left out or taken twice shows in all that follow."""
    return 0.9 * before + step


def _expected() -> dict[int, float]:
    values, value = {}, 0.0
    for step in range(STEPS):
        value = _value(value, step)
        values[step + 1] = value
    return values


def _loop(config: dict[str, Any]) -> None:
    """Steps, reports and checkpoints as training has them; dies where `config` says, once each."""
    rank, _ = rank_and_world()
    die = partial(_die_once, Path(config["marks"]), config["deaths"], rank)
    value, first = 0.0, 0
    with last_checkpoint() as folder:
        if folder is not None:
            state = json.loads((folder / "state.json").read_text())
            value, first = state["value"], state["step"]
            (folder / "more").stat()
    for step in range(first + 1, STEPS + 1):
        die("step", step)
        value = _value(value, step - 1)
        report({"step": step, "value": value})
        if step % EVERY == 0:
            with _dying_before_the_report(die, step):
                save = partial(_save, die, step, value, config.get("more_bytes", 1))
                report({"step": step, "kept": value}, save)


def _save(die: Callable[[str, int], None], step: int, value: float, more_bytes: int, folder: Path) -> None:
    (folder / "state.json").write_text(json.dumps({"step": step, "value": value}))
    die("half written", step)
    (folder / "more").write_bytes(bytes(more_bytes))


class _dying_before_the_report:  # noqa: N801 (reads as a phrase)
    """Lets a death come when the checkpoint has its name and nobody heard of it: when its writer meets the others."""

    def __init__(self, die: Callable[[str, int], None], step: int) -> None:
        self.die, self.step, self.meet = die, step, ray.train.collective.broadcast_from_rank_zero

    def __enter__(self) -> None:
        def meet(data: str | None) -> str | None:
            self.die("written", self.step)
            return self.meet(data)

        ray.train.collective.broadcast_from_rank_zero = meet

    def __exit__(self, *_: object) -> None:
        ray.train.collective.broadcast_from_rank_zero = self.meet


def _die_once(marks: Path, deaths: list[tuple[str, int, list[int]]], rank: int, where: str, step: int) -> None:
    for place, at, ranks in deaths:
        mark = marks / f"{place} {at} {rank}"
        if (place, at) == (where, step) and rank in ranks and not mark.exists():
            mark.write_text("")
            time.sleep(0.2 * (len(ranks) > 1))  # so that all of a group are here
            os.kill(os.getpid(), signal.SIGKILL)


def _hear(heard: Path, deaths: list[int], metrics: Mapping[str, Any], checkpoint: Path | None) -> None:
    """Write reports down, in the controller; dies before it hears of the checkpoints at `deaths`, once each."""
    mark = heard.with_name(f"controller {metrics['step']}")
    if checkpoint is not None and metrics["step"] in deaths and not mark.exists():
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    with heard.open("a") as file:
        file.write(json.dumps(metrics) + "\n")


@pytest.fixture(autouse=True)
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.05")


def _run(
    folder: Path, storage: Path, *, deaths: list[Any] = (), controller_deaths: list[int] = (), **config: Any
) -> Path:  # type: ignore[assignment]
    group = TrainGroup("mortal", storage, workers=2, cpus_per_worker=0.5, max_failures=len(deaths))
    config |= {"marks": str(folder), "deaths": list(deaths)}
    return run_group(_loop, config, group, partial(_hear, folder / "heard", list(controller_deaths)))


def _heard(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "heard").read_text().splitlines()]


def _assert_nothing_is_lost(lines: list[dict[str, Any]], restarts: int) -> None:
    """Every step has its one value, and no restart repeats more than the steps between two checkpoints."""
    steps = [line["step"] for line in lines if "value" in line]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    assert all(
        line["value"] == pytest.approx(_expected()[line["step"]], abs=1e-12) for line in lines if "value" in line
    )
    back = [before - after for before, after in pairwise(steps) if after <= before]
    assert len(back) <= restarts
    assert all(repeated < EVERY for repeated in back), steps
    kept = {line["step"]: line["kept"] for line in lines if "kept" in line}
    assert kept == pytest.approx({step: _expected()[step] for step in range(EVERY, STEPS + 1, EVERY)})


def _free_what_lost_controllers_held() -> None:
    """Ray frees it when the driver ends, here with the suite; what would do so earlier wants a dashboard."""
    for found, group in placement_group_table().items():
        if group["state"] == "CREATED":
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(found))))


@pytest.mark.slow
def test_a_group_outlives_its_workers_and_its_controller(ray_session: None, tmp_path: Path) -> None:
    """One story: a worker, all workers, one while it writes, one before it reports, and twice the controller."""
    storage = tmp_path / "runs"
    deaths = [("step", 3, [1]), ("step", 7, [0, 1]), ("half written", 12, [0]), ("written", 12, [0])]
    with pytest.raises(RuntimeError, match=r"training mortal lost its controller.*the same command goes on from it"):
        _run(tmp_path, storage, deaths=deaths, controller_deaths=[16])
    assert _heard(tmp_path)[-1]["step"] == 16 and "kept" not in _heard(tmp_path)[-1]
    assert last_heard(storage / "mortal").metrics["step"] == 12  # type: ignore[union-attr]

    with pytest.raises(RuntimeError, match="lost its controller"):
        _run(tmp_path, storage, controller_deaths=[20])
    _free_what_lost_controllers_held()
    # As a kill during its writing leaves it, for Ray Train writes it over in place.
    (storage / "mortal" / LIST).write_text("")
    (storage / "mortal" / ".draft-checkpoint_1").mkdir()
    last = _run(tmp_path, storage)
    _assert_nothing_is_lost(_heard(tmp_path), restarts=len(deaths) + 2)
    assert json.loads((last / "state.json").read_text()) == {"step": STEPS, "value": _expected()[STEPS]}
    assert not list((storage / "mortal").glob(".draft-*"))
    assert len(list((storage / "mortal").glob("checkpoint_2*"))) == 2, "what was never reported is taken away"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A real file system of a size that can be changed; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here")

    def sized(size: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)
        return folder

    try:
        yield sized
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_its_last_checkpoint_and_room_lets_it_go_on(
    ray_session: None, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("1200k")
    told = r"training mortal failed: there is no room for a checkpoint in \S+/disk/mortal .*No space left.*Free space"
    with pytest.raises(RuntimeError, match=told):
        _run(tmp_path, disk, more_bytes=500_000)
    assert last_heard(disk / "mortal").metrics["step"] == 8  # type: ignore[union-attr]
    assert (disk / "mortal" / HEARD).exists()
    assert not list((disk / "mortal").glob(".draft-*")), "a failed attempt gives its room back"
    small_disk("4m")
    _run(tmp_path, disk, more_bytes=500_000)
    _assert_nothing_is_lost(_heard(tmp_path), restarts=1)


def test_a_checkpoint_is_whole_or_absent(tmp_path: Path) -> None:
    def torn(folder: Path) -> None:
        (folder / "half").write_text("")
        assert not (tmp_path / "run" / "checkpoint_1").exists()
        raise ValueError("cut")

    with pytest.raises(ValueError, match="cut"):
        write_checkpoint(tmp_path / "run" / "checkpoint_1", torn)
    assert list((tmp_path / "run").iterdir()) == []
    write_checkpoint(tmp_path / "run" / "checkpoint_1", lambda folder: None)
    assert (tmp_path / "run" / "checkpoint_1").is_dir()


def test_a_run_whose_last_checkpoint_is_gone_does_not_begin_again(tmp_path: Path) -> None:
    result = {"checkpoint_dir_name": "checkpoint_1", "metrics": {}}
    listed = {"checkpoint_results": [result], "latest_checkpoint_result": result, "checkpoint_report_indices": [0]}
    (tmp_path / HEARD).write_text(json.dumps(listed))
    with pytest.raises(FileNotFoundError, match=r"checkpoint checkpoint_1 is gone.*another --name"):
        mend(tmp_path)


def test_only_a_full_disk_is_called_one(tmp_path: Path) -> None:
    full = RuntimeError("cannot close the file")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "no room" in str(without_room(full, tmp_path))
    assert without_room(OSError(errno.EIO, "Input/output error"), tmp_path) is None
