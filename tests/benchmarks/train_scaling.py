"""What a second worker brings: samples per second of two workers with one thread each, over one with one thread.

    python tests/benchmarks/train_scaling.py

    one process,   1 thread                      --+
                                                   +-- take turns of 3 steps, all warm
    two processes, 1 thread each, synchronised   --+

The step is that of configs/isbi2012-cpu.yaml with as many samples in each worker, from memory: `fit` as training calls
it, under MultiWorkerMirroredStrategy with synchronised batch normalisation. Without a core for each worker no second
one can bring anything: on a machine that others use the figure is a lower bound. Prints the table, keeps
results/train_scaling.json, exits with 1 where the aim is missed.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path

from bare_step import recipe_of, synthetic_batches
from machine import ROOT, machine
from pairs import PAIRS, estimate, interleaved, ratio
from report import Aim, Outcome, tell
from turns import segment_of, tell_speed, wait_for

MINUTES = 4
CONFIG = ROOT / "configs" / "isbi2012-cpu.yaml"
TURN_STEPS = 3
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}


def train(folder: Path, name: str) -> None:
    """A worker's part: `fit` on batches in memory; the group's first worker takes the turns, the others follow it."""
    from tessera.model.training import FitPlan, fit

    settings = recipe_of(CONFIG)
    speaks = not name.startswith("follower")
    steps = TURN_STEPS * (PAIRS + 1)
    workers = len(json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"])
    samples = TURN_STEPS * settings.schedule.batch * workers
    begun = 0.0

    def on_step(line: Mapping[str, float]) -> None:
        nonlocal begun
        if not speaks:
            return
        tell_speed(folder, name, samples / (time.perf_counter() - begun))
        if line["step"] < steps:
            wait_for(folder, name)
        begun = time.perf_counter()

    if speaks:
        wait_for(folder, name)
    begun = time.perf_counter()
    fit(
        lambda first: cycle(synthetic_batches(settings, count=2)),
        settings.network,
        settings.optimiser,
        FitPlan(steps, TURN_STEPS, steps, settings.seed),
        on_step=on_step,
        on_checkpoint=lambda snapshot: None,
    )


def cluster(workers: int) -> list[str]:
    """TF_CONFIG of each worker of a group on this machine."""
    with ExitStack() as stack:  # all open at once: a port is given twice otherwise
        sockets = [stack.enter_context(socket.socket()) for _ in range(workers)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    task = [{"type": "worker", "index": rank} for rank in range(workers)]
    return [json.dumps({"cluster": {"worker": addresses}, "task": one}) for one in task]


@contextmanager
def group(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """A group of workers, the first of which takes the turns."""
    children = []
    try:
        for name, tf_config in zip(names, cluster(len(names)), strict=True):
            environment = os.environ | ONE_THREAD | {"TF_CONFIG": tf_config}
            children.append(subprocess.Popen([sys.executable, __file__, str(folder), name], env=environment))
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def main() -> int:
    """Measure, print and keep."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    facts = machine()
    with tempfile.TemporaryDirectory() as made, group(Path(made), ["one"]), group(Path(made), ["two", "follower"]):
        arms = {name: partial(segment_of, Path(made), name) for name in ("one", "two")}
        for arm in arms.values():
            arm()  # warm
        speeds = interleaved(arms, PAIRS)
    figures = {f"{name} worker(s) with one thread each, samples/s": estimate(found) for name, found in speeds.items()}
    aim = Aim("two workers over one", ratio(speeds["two"], speeds["one"]), ">=", 1.6)
    what = "Samples per second of two workers over one, one thread each, equal batch per worker (interleaved turns)"
    return tell(Outcome("train_scaling", what, facts, figures, [aim], config=CONFIG))


if __name__ == "__main__":
    if sys.argv[1:]:
        train(Path(sys.argv[1]), sys.argv[2])
    else:
        sys.exit(main())
