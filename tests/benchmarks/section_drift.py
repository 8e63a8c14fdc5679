"""What drift from section to section costs: V_Rand on the phantom with and without it, under both normalisation rules.

    python tests/benchmarks/section_drift.py                                        the measurement: four demos
    python tests/benchmarks/section_drift.py --steps 4 --sections 8 --size 256      that it runs, in minutes

Each arm is `tessera demo`: the network of configs/demo.yaml learns from the first half of the volume, chooses its
threshold on the quarter after it and is scored once on the last one, from the same seeds. The volumes differ in the
drift alone. The promise: under per_section, drift lowers V_Rand at the frozen threshold by at most 0.01. Prints one
JSON document, and exits with 1 where the promise is not kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict
from typing import Any

from tessera.images.normalise import Rule
from tessera.images.phantom_options import PhantomOptions
from tessera.settings.common import RunnerSettings
from tessera.settings.demo import DemoSettings
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


def main(arguments: list[str] | None = None) -> int:
    """Run all arms and print the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("steps", 240), ("sections", 24), ("size", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--drift", type=float, default=1.0)
    chosen = parser.parse_args(arguments)
    size = {name: getattr(chosen, name) for name in ("steps", "sections", "size")}
    arms = {}
    with session(RunnerSettings()):  # one Ray for all arms
        for name, (rule, drifting) in ARMS.items():
            arms[name] = measured(size, rule, PhantomOptions(drift=chosen.drift if drifting else 0.0))
            print(f"{name:24} V_Rand {arms[name]['v_rand']:.4f}", file=sys.stderr)
    machine = {"machine": platform.machine(), "python": platform.python_version()}
    facts = {**asdict(DemoSettings(**size)), "drift": chosen.drift, **machine}
    found = verdict(arms)
    print(json.dumps({"settings": facts, "arms": arms, **found}, indent=2))
    return 0 if found["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
