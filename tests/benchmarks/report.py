"""What every benchmark says at its end: a table to read, a JSON file to keep, and whether its aims were met.

    tests/benchmarks/results/NAME.json    what, commit, config and its digest, machine, figures, aims

Results are committed: a figure in the README is one of theirs.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from machine import ROOT, commit, digest
from pairs import Estimate

RESULTS = Path(__file__).resolve().parent / "results"
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Aim:
    """What was promised of a figure, and what was measured.

    >>> str(Aim("speed", Estimate(0.97, 0.9, 1.0, 0.98, 7), ">=", 0.95))
    'speed                                                   0.97 [0.9, 1]           >= 0.95     met'
    """

    what: str
    measured: Estimate
    relation: Literal[">=", "<=", ">"]
    aim: float

    @property
    def met(self) -> bool:
        """Whether the median keeps the promise."""
        return _HOLDS[self.relation](self.measured.median, self.aim)

    def __str__(self) -> str:
        state = "met" if self.met else "MISSED"
        return f"{self.what:55} {self.measured!s:23} {self.relation} {self.aim:<8g} {state}"

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"measured": self.measured.plain(), "aim": f"{self.relation} {self.aim:g}", "met": self.met}


@dataclass(frozen=True)
class Outcome:
    """A benchmark's findings.

    Attributes:
      name: of the benchmark and of its file of results.
      what: one sentence: what was measured, and how.
      machine: from `machine()`, taken before the measurement: its load average is that of others.
      figures: name -> estimate, with the unit in the name.
      aims: what was promised.
      notes: what else is needed to read the figures, such as peers that are missing.
      config: the configuration measured; None where there is none.
    """

    name: str
    what: str
    machine: Mapping[str, Any]
    figures: Mapping[str, Estimate]
    aims: Sequence[Aim]
    notes: Sequence[str] = ()
    config: Path | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        config = self.config and {"config": str(self.config.relative_to(ROOT)), "config_sha256": digest(self.config)}
        return {
            "what": self.what,
            "commit": commit(),
            **(config or {}),
            "machine": self.machine,
            "figures": {name: one.plain() for name, one in self.figures.items()},
            "aims": {aim.what: aim.plain() for aim in self.aims},
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """Figures, then aims, then notes."""
        lines = [self.what, ""]
        lines += [f"{name:55} {one!s}" for name, one in self.figures.items()]
        return "\n".join([*lines, "", *map(str, self.aims), *self.notes])


def tell(outcome: Outcome, results: Path = RESULTS) -> int:
    """Print the table, keep the results; returns the exit code: 1 where an aim was missed."""
    print(outcome.table(), flush=True)
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{outcome.name}.json").write_text(json.dumps(outcome.plain(), indent=1) + "\n")
    return 0 if all(aim.met for aim in outcome.aims) else 1
