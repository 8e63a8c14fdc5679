"""Studies on the ISBI 2012 stack, one resumable training at a time: what parts of a recipe are worth, and its spread.

    python tests/benchmarks/isbi2012_studies.py choices      fitted on 0-19, scored on 20-23: what a recipe might become
    python tests/benchmarks/isbi2012_studies.py ablation     fitted on 0-19, scored on 20-23: the recipe without a part
    python tests/benchmarks/isbi2012_studies.py seeds        refitted on 0-23 with three seeds, scored on 24-29
    python tests/benchmarks/isbi2012_studies.py folds        five fits on 24 sections each, the other six scored

A unit is one `tessera train` with a config of its own under TESSERA_HOME/studies, and the scores of its bundle at the
frozen threshold and over all thresholds. What is measured is in the results at once; the same command again goes on
with what is missing, inside an interrupted training too. Only `seeds` ever looks at sections 24-29 of a recipe, once
for each seed; `folds` comes after a recipe is frozen and changes nothing (DESIGN.md, Choosing).
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tessera.settings.places import home
from tessera.storage.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]
RAW, LABELS = "isbi-raw", "isbi-labels"
VOXEL_SIZE_NM = "[50, 4, 4]"


@dataclass(frozen=True)
class Unit:
    """One training and its scores.

    Attributes:
      name: within the study.
      changes: dotted key -> value, on top of the recipe.
      held_out: sections that are scored.
      refit: the unit whose threshold and settings it repeats on its training and validation sections together.
      scored_from: the unit whose bundle is scored, where nothing is trained.
      symmetries: to average over; None takes the bundle's.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    held_out: Sequence[int] = (20, 21, 22, 23)
    refit: str | None = None
    scored_from: str | None = None
    symmetries: int | None = None


def _short(steps: int) -> dict[str, Any]:
    """A fit that is judged once, at its end."""
    return {"schedule.steps": steps, "schedule.checkpoint_every": steps}


def choices(steps: int) -> list[Unit]:
    """The recipe and what it might become, all of the same length: what is better here may be chosen."""
    short = _short(steps)
    return [
        Unit("as it is", short),
        Unit("with lower border weights", short | {"loss.w0": 3.0}),
        Unit("with soft Dice", short | {"loss.dice": 1.0}),
        Unit("with neighbouring sections", short | {"network.input_sections": 3}),
        Unit("with a longer average", short | {"optimiser.ema_momentum": 0.998}),
    ]


def ablation(steps: int) -> list[Unit]:
    """The recipe and the recipe without one part each, all of the same length."""
    short = _short(steps)
    return [
        Unit("whole", short),
        Unit("without elastic deformation", short | {"augmentation.elastic_sigma_px": 0.0}),
        Unit("without border weights", short | {"loss.w0": 0.0}),
        Unit("without averaged weights", short | {"optimiser.ema_momentum": None}),
        Unit("without averaging over symmetries", scored_from="whole", symmetries=1),
    ]


def seeds(_steps: int) -> list[Unit]:
    """The choosing fit, and refits of three seeds on 0-23: sections 24-29 are scored once for each."""
    refits = [Unit(f"seed {s}", {"seed": s}, range(24, 30), refit="chosen") for s in (2015, 2016, 2017)]
    return [Unit("chosen"), *refits]


def folds(_steps: int) -> list[Unit]:
    """Five folds of six neighbouring sections each."""
    return [_fold(range(first, first + 6)) for first in range(0, 30, 6)]


def _fold(held_out: range) -> Unit:
    learned = ",".join(str(z) for z in range(30) if z not in held_out)
    data = {
        "train": [{"volume": RAW, "labels": LABELS, "sections": learned}],
        "validation": [{"volume": RAW, "labels": LABELS, "sections": f"{held_out[0]}-{held_out[-1]}"}],
    }
    return Unit(f"fold {held_out[0]}-{held_out[-1]}", {"data": data}, held_out)


STUDIES: dict[str, Callable[[int], list[Unit]]] = {
    "choices": choices,
    "ablation": ablation,
    "seeds": seeds,
    "folds": folds,
}


def with_changes(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with dotted keys set.

    >>> with_changes({"loss": {"w0": 10.0}, "seed": 1}, {"loss.w0": 0.0})
    {'loss': {'w0': 0.0}, 'seed': 1}
    """
    result = copy.deepcopy(dict(recipe))
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return result


def identity(unit: Unit, recipe: Mapping[str, Any]) -> str:
    """Digest of what a unit's result depends on besides the code."""
    facts = [with_changes(recipe, unit.changes), list(unit.held_out), unit.refit, unit.scored_from, unit.symmetries]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Study:
    """A study of one recipe.

    Attributes:
      name: one of `STUDIES`.
      config: the recipe's file.
      recipe: what it holds.
      results: the JSON file.
    """

    name: str
    config: Path
    recipe: Mapping[str, Any]
    results: Path

    def run_name(self, unit: str) -> str:
        """The training run of a unit, also its folder under TESSERA_HOME/runs."""
        return f"{self.config.stem}-{self.name}-{unit}".replace(" ", "-")

    def bundle(self, unit: str) -> Path:
        """The finished bundle of a unit."""
        return home() / "runs" / self.run_name(unit) / "bundle"

    def measure(self, unit: Unit) -> dict[str, Any]:
        """Train where nothing was trained yet, and score."""
        trained = unit.scored_from or unit.name
        started = time.monotonic()
        if not self.bundle(trained).exists():
            self._train(unit)
        minutes = (time.monotonic() - started) / 60
        return {
            "identity": identity(unit, self.recipe),
            "commit": commit(),
            "minutes": round(minutes, 1),
            "load": [round(one, 1) for one in os.getloadavg()],
            "sections": list(unit.held_out),
            **scores_of(self.bundle(trained), unit.held_out, unit.symmetries),
        }

    def _train(self, unit: Unit) -> None:
        file = home() / "studies" / self.run_name(unit.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        settings = with_changes(self.recipe, unit.changes) | {"register_as": f"{self.config.stem}-{self.name}"}
        write_atomically(file.with_suffix(".yaml"), yaml.safe_dump(settings).encode())
        refit = ["--refit", self.run_name(unit.refit)] if unit.refit else []
        command = ["train", "--config", f"{file}.yaml", "--name", self.run_name(unit.name), *refit]
        subprocess.run([sys.executable, "-m", "tessera.cli", *command], check=True)


def scores_of(bundle: Path, sections: Sequence[int], symmetries: int | None) -> dict[str, Any]:
    """Scores of a bundle on whole sections, by the functions that training validates with."""
    from tessera.metrics.isbi import finish, score_section
    from tessera.model.predictor import load_predictor, predict_volume
    from tessera.settings.places import input_path
    from tessera.storage.volumes import open_volume
    from tessera.workflows.annotated import cells_of_labels

    predict, contract = load_predictor(bundle, symmetries)  # type: ignore[arg-type]
    raw, labels = open_volume(input_path(RAW)), open_volume(input_path(LABELS))
    scored = []
    for z in sections:
        probability = predict_volume(predict, raw.section(z)[np.newaxis], contract)[0]
        scored.append(score_section(1.0 - probability, cells_of_labels(labels.section(z), invert=False)))
    scores = finish(scored)
    frozen = contract.threshold
    return {
        "frozen_threshold": None if frozen is None else scores.at(frozen),
        "maximum_over_thresholds": scores.best(),
        "by_threshold": scores.to_dict()["rows"],
    }


def commit() -> str:
    """The checkout's commit, with a mark where files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")


def prepare() -> None:
    """Ingest the stack under TESSERA_HOME, once.

    Raises:
      FileNotFoundError: the stack is not where TESSERA_ISBI_DIR says, nor in ../shared/data/isbi2012.
    """
    source = Path(os.environ.get("TESSERA_ISBI_DIR", ROOT.parent / "shared/data/isbi2012"))
    for file, name, kind in (("train-volume.tif", RAW, "image"), ("train-labels.tif", LABELS, "labels")):
        if not (source / file).exists():
            raise FileNotFoundError(f"{source / file} is not there: set TESSERA_ISBI_DIR to the folder of the stack.")
        options = ["--source", str(source / file), "--output", name, "--voxel_size_nm", VOXEL_SIZE_NM, "--kind", kind]
        subprocess.run([sys.executable, "-m", "tessera.cli", "ingest", *options], check=True)


def spread(units: Mapping[str, Any], row: str) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over units of each metric in a row of their scores."""
    found = {}
    for metric in ("v_rand", "v_info", "pixel_error", "rand_error"):
        values = [unit[row][metric] for unit in units.values()]
        found[metric] = {
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
        }
    return found


def settled(study: Study) -> dict[str, Any]:
    """The units that earlier calls measured with the same recipe."""
    if not study.results.exists():
        return {}
    units: dict[str, Any] = json.loads(study.results.read_text())["units"]
    return units


def keep(study: Study, units: Mapping[str, Any]) -> None:
    """Write the results with what they were measured by."""
    document = {
        "study": study.name,
        "config": str(study.config.relative_to(ROOT)),
        "config_sha256": hashlib.sha256(study.config.read_bytes()).hexdigest(),
        "machine": f"{os.cpu_count()} CPU cores",
        "units": units,
    }
    refitted = {name: unit for name, unit in units.items() if name.startswith(("seed ", "fold "))}
    if refitted:
        rows = ("frozen_threshold", "maximum_over_thresholds")
        document["over_units"] = {row: spread(refitted, row) for row in rows}
    write_atomically(study.results, (json.dumps(document, indent=1) + "\n").encode())


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing of a study, unit by unit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/isbi2012-cpu.yaml")
    parser.add_argument("--steps", type=int, default=1000, help="of short units: ten minutes on two cores")
    parser.add_argument("--only", nargs="*", help="units to measure; all where left out")
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args(arguments)
    config = chosen.config.resolve()
    results = chosen.results or ROOT / f"tests/benchmarks/results/{config.stem}-{chosen.study}.json"
    study = Study(chosen.study, config, yaml.safe_load(config.read_text()), results)
    prepare()
    units = settled(study)
    for unit in STUDIES[chosen.study](chosen.steps):
        known = units.get(unit.name, {}).get("identity") == identity(unit, study.recipe)
        if not known and (not chosen.only or unit.name in chosen.only):
            units[unit.name] = study.measure(unit)
            keep(study, units)
        if unit.name in units:
            row = units[unit.name]["maximum_over_thresholds"]
            print(f"{unit.name:36}", *(f"{name} {row[name]:.4f}" for name in ("v_rand", "v_info", "pixel_error")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
