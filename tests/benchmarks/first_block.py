"""How long the first block takes: from the command to it, over a bare script that predicts one tile.

    python tests/benchmarks/first_block.py

The command is `tessera predict` with one worker on a volume of blocks of 1,024 px; it is stopped once its first shard
is written. The script imports TensorFlow, loads the model and predicts one such tile. Both start cold, in turns. Prints
the table, keeps results/first_block.json, exits with 1 where the aim is missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from ending import end
from kept import kept_rounds
from machine import commit, machine
from pairs import estimate
from report import Aim, Outcome, tell
from workload import Workload, asked_for, put_bundle, put_volume

MINUTES = 6
USUAL = Workload(sections=1, extent=2048, block=(1, 1024, 1024))
PATIENCE_S = 600.0


def bare_seconds(home: Path, work: Workload) -> float:
    """A process that does nothing else."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--bare", str(home), str(work.block[1])], check=True)
    return time.perf_counter() - begun


def bare_script(home: Path, side: int) -> int:
    """What the bare arm runs."""
    import numpy as np

    from tessera.model.predictor import load_predictor

    predict, contract = load_predictor(home / "bundle")
    halo = contract.network.arithmetic.halo[1]
    predict(np.zeros((1, side + 2 * halo, side + 2 * halo, 1), np.float32))
    return 0


def command_seconds(home: Path, work: Workload) -> float:
    """The command, until the first shard is there."""
    name = f"first-{time.monotonic_ns()}"
    layout = f"[{', '.join(map(str, work.block))}]"
    words = ["predict", "--volume", "raw", "--model", str(home / "bundle"), "--output", name, "--workers", "1"]
    environment = os.environ | {"TESSERA_HOME": str(home), "TESSERA_LOG": "WARNING"}
    begun = time.perf_counter()
    command = [sys.executable, "-m", "tessera.cli", *words, "--block", layout, "--shard", layout]
    child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        return _first_shard(home / "volumes" / f"{name}.zarr" / "0" / "c", child, begun)
    finally:
        end(child)


def _first_shard(folder: Path, child: subprocess.Popen[bytes], begun: float) -> float:
    while not any(path.is_file() and path.name.isdigit() for path in folder.rglob("*")):
        # A short job may have ended between two looks.
        if child.poll() not in (None, 0) or time.perf_counter() - begun > PATIENCE_S:
            raise RuntimeError(
                f"no block within {time.perf_counter() - begun:.0f} s (exit code {child.poll()}): there is nothing to "
                "time. Run the command by hand and read its messages."
            )
        time.sleep(0.05)
    return time.perf_counter() - begun


def main() -> int:
    """Measure, print and keep."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    facts, work = machine(), asked_for((__doc__ or "").splitlines()[0], USUAL)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        home = Path(made)
        os.environ["TESSERA_HOME"] = made
        put_volume(home, work)
        put_bundle(home, work)
        bare_seconds(home, work)  # so that no arm alone reads TensorFlow from the disk
        arms = {"bare": partial(bare_seconds, home, work), "command": partial(command_seconds, home, work)}
        seconds = kept_rounds("first_block", {"work": str(work), "commit": commit()}, arms)
    over = [ours - theirs for ours, theirs in zip(seconds["command"], seconds["bare"], strict=True)]
    figures = {f"{name}, seconds to the first block": estimate(found) for name, found in seconds.items()}
    aims = [Aim("seconds over a bare script", estimate(over), "<=", 6.0)]
    what = "Seconds from tessera predict to its first block, over a bare script that predicts one tile (cold, in turns)"
    return tell(Outcome("first_block", what, facts, figures, aims, [str(work)]))


if __name__ == "__main__":
    sys.exit(bare_script(Path(sys.argv[2]), int(sys.argv[3])) if sys.argv[1:2] == ["--bare"] else main())
