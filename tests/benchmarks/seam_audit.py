"""How often the seam auditor is wrong: correct jobs that it fails, planted faults that it misses.

    python tests/benchmarks/seam_audit.py               the study, an hour on two cores: 300 correct jobs, 200 faults
    python tests/benchmarks/seam_audit.py --only zero   one kind of trial

Each trial is a prediction of the phantom, plain or with organelles, tears and folds, by one of four small networks that
were trained on it, in blocks and tiles drawn from the trial's seed; then what `tessera audit` finds in it. Aims: at
most 1 of 100 correct jobs fails; of jobs whose tiles are each normalised by their own statistics, and of jobs whose
tiles see mirrored voxels, or zeros, in place of their halo, at least 95% do. Weaker faults tell from where on a fault
passes. Results are kept after every ten trials: the same command goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import commit, machine

from seam_jobs import NETWORKS, Fault, audited, drawn, predicted, trained, with_fault
from tessera.model.predictor import load_predictor
from tessera.settings.places import home
from tessera.storage.files import write_atomically

MINUTES = 60.0
RESULTS = Path(__file__).resolve().parent / "results/seam-audit.json"


@dataclass(frozen=True)
class Arm:
    """Trials of one kind.

    Attributes:
      fault: what is planted; None in correct jobs.
      seeds: one trial each.
      aim: share of trials that may fail the audit at most (correct jobs) or must at least; None where it is only told.
    """

    fault: Fault | None
    seeds: range
    aim: float | None = None


ARMS = {
    "normalisation": Arm(Fault("normalisation"), range(2000, 2100), 0.95),
    "mirror": Arm(Fault("mirror"), range(3000, 3050), 0.95),
    "zero": Arm(Fault("zero"), range(3050, 3100), 0.95),
    "correct": Arm(None, range(300), 0.01),
    **{f"normalisation, {s:.0%}": Arm(Fault("normalisation", s), range(4000, 4016)) for s in (0.75, 0.5, 0.25)},
    **{f"mirror, halo of {px} px": Arm(Fault("mirror", 1.0, px), range(5000, 5016)) for px in (4, 8, 12, 16)},
}


def trial(seed: int, fault: Fault | None, networks: Mapping[str, Any]) -> dict[str, Any]:
    """Predict and audit one job."""
    job = drawn(seed)
    predict, contract = networks[job.network]
    network = predict if fault is None else with_fault(predict, contract, fault)
    found = audited(job, predicted(job, network, contract), contract.network.arithmetic)
    return {"verdict": found.verdict, "network": job.network, "faces": found.faces, "scores": found.scores}


def missing(trials: Mapping[str, Mapping[str, Any]], only: str | None) -> list[tuple[str, int]]:
    """Trials to run, all kinds in step: what an interrupted study has is a fair part of each."""
    planned = [
        ((i + 0.5) / len(arm.seeds), name, seed) for name, arm in ARMS.items() for i, seed in enumerate(arm.seeds)
    ]
    return [
        (name, seed)
        for _, name, seed in sorted(planned)
        if only in (None, name) and str(seed) not in trials.get(name, {})
    ]


def summary(trials: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of each arm: trials, those that failed the audit, and whether the aim is met."""
    told = {}
    for name, arm in ARMS.items():
        done = trials.get(name, {})
        failed = sum(one["verdict"] == "failed" for one in done.values())
        told[name] = {"trials": len(done), "of": len(arm.seeds), "failed": failed}
        if arm.aim is not None and done:
            share = failed / len(done)
            told[name] |= {"aim": arm.aim, "met": share <= arm.aim if arm.fault is None else share >= arm.aim}
    return told


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, keep each trial, print the summary; 1 where an aim is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(ARMS), help="one kind of trial")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--networks", type=Path, default=home() / "studies/seam-audit")
    chosen = parser.parse_args(arguments)
    kept = json.loads(chosen.results.read_text())["trials"] if chosen.results.exists() else {}
    networks = {name: load_predictor(trained(chosen.networks, name)) for name in NETWORKS}
    for count, (name, seed) in enumerate(missing(kept, chosen.only)):
        kept.setdefault(name, {})[str(seed)] = trial(seed, ARMS[name].fault, networks)
        if count % 10 == 9:
            keep(chosen.results, kept)
    keep(chosen.results, kept)
    told = summary(kept)
    for name, row in told.items():
        print(f"{name:28}", *(f"{key} {value}" for key, value in row.items()))
    return 0 if all(row.get("met", True) for row in told.values()) else 1


def keep(results: Path, trials: Mapping[str, Any]) -> None:
    """Write what is known so far; a line for each trial."""
    facts = {"commit": commit(), "machine": machine(), "summary": summary(trials)}
    rows = (
        f' "{name}": {{\n' + ",\n".join(f'  "{seed}": {json.dumps(one)}' for seed, one in own.items()) + "\n }"
        for name, own in trials.items()
    )
    text = json.dumps(facts, indent=1)[:-2] + ',\n "trials": {\n' + ",\n".join(rows) + "\n }\n}\n"
    write_atomically(results, text.encode())


if __name__ == "__main__":
    sys.exit(main())
