"""How long the first step takes: from the command to it, over a bare script that builds the same model.

    python tests/benchmarks/first_step.py

The command is `tessera train` with configs/isbi2012-cpu.yaml on the synthetic volume, made beforehand; it is stopped
once its first step is reported. The script imports TensorFlow, builds the network and takes a step on a batch of noise.
Both start cold, in turns. Prints the table, keeps results/first_step.json, exits with 1 where the aim is missed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import yaml
from bare_step import BareLoop, recipe_of, synthetic_batches
from ending import end
from machine import ROOT, machine
from pairs import PAIRS, estimate, interleaved
from report import Aim, Outcome, tell

MINUTES = 5
CONFIG = ROOT / "configs" / "isbi2012-cpu.yaml"
PATIENCE_S = 300.0


def bare_seconds() -> float:
    """A process that does nothing else."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, __file__, "--bare"], check=True)
    return time.perf_counter() - begun


def command_seconds(home: Path, config: Path) -> float:
    """The command, until the controller has written the first step down."""
    name = f"first-{time.monotonic_ns()}"
    words = ["train", "--config", str(config), "--name", name]
    environment = os.environ | {"TESSERA_HOME": str(home), "TESSERA_LOG": "WARNING"}
    begun = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-m", "tessera.cli", *words], env=environment)
    try:
        return _first_line(home / "runs" / name / "progress.jsonl", child, begun)
    finally:
        end(child)


def _first_line(progress: Path, child: subprocess.Popen[bytes], begun: float) -> float:
    while not (progress.exists() and progress.stat().st_size):
        if child.poll() is not None or time.perf_counter() - begun > PATIENCE_S:
            raise RuntimeError(
                f"no step within {time.perf_counter() - begun:.0f} s (exit code {child.poll()}): there is nothing to "
                "time. Run the command by hand and read its messages."
            )
        time.sleep(0.05)
    return time.perf_counter() - begun


def bare_script() -> int:
    """What the other arm runs."""
    settings = recipe_of(CONFIG)
    BareLoop(settings, synthetic_batches(settings, count=1)).take(1)
    return 0


def prepared(home: Path) -> Path:
    """The recipe's config on a phantom in a home of its own, telling every step."""
    from train_overhead import with_synthetic_data

    os.environ["TESSERA_HOME"] = str(home)
    data = with_synthetic_data(recipe_of(CONFIG), 1).data
    parts = {"train": data.train, "validation": data.validation}
    values = yaml.safe_load(CONFIG.read_text())
    values["data"] = {name: [vars(one) for one in listed] for name, listed in parts.items()}
    values["schedule"]["log_every"] = 1
    config = home / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    return config


def main() -> int:
    """Measure, print and keep."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    facts = machine()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
        config = prepared(Path(made))
        bare_seconds()  # so that no arm alone reads TensorFlow from the disk
        arms = {"bare": bare_seconds, "command": partial(command_seconds, Path(made), config)}
        seconds = interleaved(arms, PAIRS)
    over = [ours - theirs for ours, theirs in zip(seconds["command"], seconds["bare"], strict=True)]
    figures = {f"{name}, seconds to the first step": estimate(found) for name, found in seconds.items()}
    aims = [Aim("seconds over a bare script", estimate(over), "<=", 10.0)]
    what = "Seconds from the command to the first step, over a bare script that builds the same model (cold, in turns)"
    return tell(Outcome("first_step", what, facts, figures, aims, config=CONFIG))


if __name__ == "__main__":
    sys.exit(bare_script() if sys.argv[1:] == ["--bare"] else main())
