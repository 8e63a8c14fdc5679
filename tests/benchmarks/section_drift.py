"""What drift from section to section costs: V_Rand on the phantom with and without it, under both normalisation rules.

    python tests/benchmarks/section_drift.py                                        the measurement: four demos
    python tests/benchmarks/section_drift.py --steps 4 --sections 8 --size 256      that it runs, in minutes

Each arm is `tessera demo`: the network of configs/demo.yaml learns from the first half of the volume, chooses its
threshold on the quarter after it and is scored once on the last one, from the same seeds. The volumes differ in the
drift alone. The promise: under per_section, drift lowers V_Rand at the frozen threshold by at most 0.01. Prints one
JSON document, and exits with 1 where the promise is not kept. Each arm is kept in --results as soon as it is measured:
the same command again measures only what is missing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

from tessera.images.normalise import Rule
from tessera.images.phantom_options import PhantomOptions
from tessera.settings.common import RunnerSettings
from tessera.settings.demo import DemoSettings
from tessera.settings.places import home
from tessera.storage.files import write_atomically
from tessera.workflows.block_jobs import session
from tessera.workflows.demo import run_demo

MOST_LOST = 0.01
ARMS: dict[str, tuple[Rule, bool]] = {
    "even, global": ("global", False),
    "even, per_section": ("per_section", False),
    "drifting, global": ("global", True),
    "drifting, per_section": ("per_section", True),
}


def measured(size: dict[str, int], rule: Rule, options: PhantomOptions) -> dict[str, float]:
    """The scores of one arm on its held-out sections."""
    scores = run_demo(DemoSettings(**size, phantom=options, normalisation=rule)).scores
    frozen, best = scores["frozen_threshold"], scores["maximum_over_thresholds"]
    return {"v_rand": frozen["v_rand"], "v_info": frozen["v_info"], "v_rand_maximum": best["v_rand"]}


def verdict(arms: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What drift cost under each rule; the promise is about per_section, against the better of the even arms."""
    even = max(arms["even, global"]["v_rand"], arms["even, per_section"]["v_rand"])
    lost = {rule: even - arms[f"drifting, {rule}"]["v_rand"] for rule in ("global", "per_section")}
    return {"lost": lost, "most_lost": MOST_LOST, "kept": lost["per_section"] <= MOST_LOST}


def settled(file: Path, settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The arms that an earlier run of the same settings measured.

    Raises:
      ValueError: the file holds another measurement.
    """
    if not file.exists():
        return {}
    kept = json.loads(file.read_text())
    if kept["settings"] != settings:
        raise ValueError(
            f"{file} holds a measurement with other settings, {kept['settings']}: two would be mixed. Give another "
            "--results."
        )
    arms: dict[str, dict[str, float]] = kept["arms"]
    return arms


def main(arguments: list[str] | None = None) -> int:
    """Run the arms that are missing, keep each as soon as it is measured, and print the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("steps", 240), ("sections", 24), ("size", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--drift", type=float, default=1.0)
    parser.add_argument("--results", type=Path, default=home() / "section-drift.json")
    chosen = parser.parse_args(arguments)
    size = {name: getattr(chosen, name) for name in ("steps", "sections", "size")}
    settings = {**size, "drift": chosen.drift, "machine": platform.machine(), "python": platform.python_version()}
    arms = settled(chosen.results, settings)
    with session(RunnerSettings()):  # one Ray for all arms
        for name, (rule, drifting) in ARMS.items():
            if name not in arms:
                arms[name] = measured(size, rule, PhantomOptions(drift=chosen.drift if drifting else 0.0))
                write_atomically(chosen.results, json.dumps({"settings": settings, "arms": arms}, indent=2).encode())
            print(f"{name:24} V_Rand {arms[name]['v_rand']:.4f}", file=sys.stderr)
    found = verdict(arms)
    print(json.dumps({"settings": settings, "arms": arms, **found}, indent=2))
    return 0 if found["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
