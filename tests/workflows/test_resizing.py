"""A node comes and goes while a group of elastic size trains: the samples go on where the last checkpoint stood."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from tessera.engine.samples import sample_batches
from tessera.engine.train import TrainGroup, last_checkpoint, rank_and_world, report, run_group
from tessera.settings.train import ScheduleSettings
from tessera.workflows.feed import Feed, merged, position_of, recording

STEPS, SCHEDULE = 11, ScheduleSettings(batch=3)
NODE_COMES_AFTER, NODE_GOES_AFTER = 4, 7
"""Steps at whose end there is a checkpoint, and the group waits for its size to change."""


def _sample(shared: None, index: int) -> dict[str, Any]:
    return {"image": np.int64(index)}


def _fed_and_nothing_else(config: dict[str, Any]) -> None:
    rank, world = rank_and_world()
    batch = SCHEDULE.batch_on(world)

    def stream(first: int, last: int) -> Iterator[Any]:
        place = {"rank": rank, "world": world, "batch_size": batch // world}
        return sample_batches(_sample, None, first=first, last=last, **place)

    with last_checkpoint() as resume:
        begun = position_of(resume)
    feed = Feed(stream, begun, STEPS, batch, rank, world)
    for step, _ in enumerate(feed.batches(begun.step), begun.step):
        stops = step in (NODE_COMES_AFTER, NODE_GOES_AFTER)
        report(feed.told({"step": step, "workers": world}), feed.position(step + 1).save if stops else None)
        while stops:
            time.sleep(0.1)


def _second_node(cpus: int) -> subprocess.Popen[bytes]:
    """A node of this machine that joins the session's Ray."""
    (head,) = (node for node in ray.nodes() if node["Alive"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = ray.get_runtime_context().gcs_address
    words = ["start", f"--address={address}", f"--num-cpus={cpus}", f"--node-ip-address={head['NodeManagerAddress']}"]
    words += [f"--dashboard-agent-listen-port={port}", f"--object-store-memory={100 * 2**20}", "--block"]
    return subprocess.Popen([sys.executable, "-m", "ray.scripts.scripts", *words], stdout=subprocess.DEVNULL)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """A node and all that runs on it, at once."""
    with suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def _once_fed(digests: Path, step: int, act: Callable[[], None], done: threading.Event) -> threading.Thread:
    def watch() -> None:
        while not done.wait(0.2):
            if f'"step": {step},' in digests.read_text():
                act()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_group_grows_and_shrinks_with_its_cluster_and_feeds_each_sample_once(
    ray_session: None, tmp_path: Path
) -> None:
    digests, done = tmp_path / "fed.jsonl", threading.Event()
    nodes: list[subprocess.Popen[bytes]] = []
    digests.touch()
    sizes_path = tmp_path / "sizes.jsonl"

    def heard(line: Any, checkpoint: Path | None) -> None:
        with sizes_path.open("a") as file:
            file.write(json.dumps([line["step"], line["workers"]]) + "\n")

    # Of 4 CPUs a node has room for one of 2.5, and for Ray Data.
    group = TrainGroup("grows", tmp_path / "runs", (1, 2), cpus_per_worker=2.5, max_failures=5, resize_every_s=2.0)
    watches = [
        _once_fed(digests, NODE_COMES_AFTER, lambda: nodes.append(_second_node(cpus=4)), done),
        _once_fed(digests, NODE_GOES_AFTER, lambda: _kill(nodes[0]), done),
    ]
    try:
        run_group(_fed_and_nothing_else, {}, group, recording(digests, heard), merged)
    finally:
        done.set()
        for watch in watches:
            watch.join()
        for node in nodes:
            _kill(node)
    rows = [json.loads(line) for line in digests.read_text().splitlines()]
    fed = [(row["step"], row["first_sample"], row["samples"]) for row in rows]
    assert fed == [(s, 3 * s, 3) for s in range(5)] + [(5, 15, 2), (6, 17, 2), (7, 19, 2)] + [
        (8, 21, 3),
        (9, 24, 3),
        (10, 27, 3),
    ]
    sizes = dict(json.loads(line) for line in sizes_path.read_text().splitlines())
    assert [sizes[step] for step in range(STEPS)] == [1] * 5 + [2] * 3 + [1] * 3
