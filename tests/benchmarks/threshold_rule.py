"""Which rule should choose the threshold to freeze? Choose on some held-out sections, judge on the others.

    python tests/benchmarks/threshold_rule.py RUN [RUN ...]      runs of configs/isbi2012-*.yaml under TESSERA_HOME

Each checkpoint of the runs, with and without averaging over symmetries, is one curve over thresholds for each of the
sections 20-23. A rule chooses on every pair and triple of them; what its choice loses on the rest, against the best
threshold there, is its regret. Sections 24-29 are not touched. The means go to results/threshold-rule.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from tessera.metrics.isbi import IsbiScores, SectionScores, finish, score_section
from tessera.settings.places import home, input_path
from tessera.storage.files import write_atomically
from tessera.storage.volumes import open_volume

SECTIONS = (20, 21, 22, 23)
Values = NDArray[np.float64]


def column(scores: IsbiScores, metric: str) -> Values:
    """One metric over the thresholds, without the last one, a rounding error below 1."""
    return np.array([getattr(row, metric) for row in scores.rows[:-1]])


def _smoothed(values: Values) -> Values:
    return gaussian_filter1d(values, 1.0, mode="nearest")


def _sum(scores: IsbiScores) -> Values:
    return column(scores, "v_rand") + column(scores, "v_info") - 2 * column(scores, "pixel_error")


RULES: dict[str, Callable[[IsbiScores], float]] = {
    "robust_threshold": lambda s: s.robust_threshold,
    "highest V_Rand": lambda s: s.best_threshold,
    "highest V_Rand, smoothed": lambda s: s.thresholds[int(np.argmax(_smoothed(column(s, "v_rand"))))],
    "highest V_Info": lambda s: s.thresholds[int(np.argmax(column(s, "v_info")))],
    "V_Rand + V_Info - 2 pixel error": lambda s: s.thresholds[int(np.argmax(_sum(s)))],
    "lowest pixel error": lambda s: s.thresholds[int(np.argmin(column(s, "pixel_error")))],
    "always 0.5": lambda s: 0.5,
}


def regret(rule: Callable[[IsbiScores], float], curves: Sequence[Sequence[SectionScores]]) -> dict[str, float]:
    """Mean losses of a rule on the sections that it did not see, and the spread of what it chose."""
    lost: dict[str, list[float]] = {"v_rand": [], "v_info": [], "pixel_error": []}
    chosen = []
    for sections, seen in itertools.product(curves, _choices()):
        threshold = rule(finish([sections[i] for i in seen]))
        judged = finish([one for i, one in enumerate(sections) if i not in seen])
        for metric, losses in lost.items():
            losses.append(abs(judged.best()[metric] - judged.at(threshold)[metric]))
        chosen.append(threshold)
    return {name: float(np.mean(v)) for name, v in lost.items()} | {"spread_of_threshold": float(np.std(chosen))}


def _choices() -> list[tuple[int, ...]]:
    return [c for n in (2, 3) for c in itertools.combinations(range(len(SECTIONS)), n)]


def curves_of(bundle: Path) -> list[list[SectionScores]]:
    """The sections' curves of one bundle, as it is and averaged over 8 symmetries."""
    from tessera.model.predictor import load_predictor, predict_volume
    from tessera.workflows.annotated import cells_of_labels

    raw, labels = open_volume(input_path("isbi-raw")), open_volume(input_path("isbi-labels"))
    found = []
    for symmetries in (1, 8):
        predict, contract = load_predictor(bundle, symmetries)  # type: ignore[arg-type]
        probability = (predict_volume(predict, raw.section(z)[np.newaxis], contract)[0] for z in SECTIONS)
        truth = (cells_of_labels(labels.section(z), invert=False) for z in SECTIONS)
        found.append([score_section(1.0 - p, t) for p, t in zip(probability, truth, strict=True)])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure every rule and keep the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results/threshold-rule.json")
    chosen = parser.parse_args(arguments)
    bundles = [b for run in chosen.runs for b in sorted((home() / "runs" / run).glob("checkpoint_*/bundle"))]
    curves = [one for bundle in bundles for one in curves_of(bundle)]
    table = {name: regret(rule, curves) for name, rule in RULES.items()}
    facts = {"runs": chosen.runs, "curves": len(curves), "sections": SECTIONS, "regret": table}
    write_atomically(chosen.results, (json.dumps(facts, indent=1) + "\n").encode())
    for name, row in sorted(table.items(), key=lambda item: item[1]["v_rand"]):
        print(f"{name:34}", *(f"{metric} {value:.4f}" for metric, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
