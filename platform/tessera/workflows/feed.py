"""What training is fed: where a run stands in its stream of samples, and a digest of what each step got.

Samples are numbered 0, 1, 2 ... over the whole run. Where the number of workers changes on the way, so may the size of
a batch; a step's number then no longer says which samples it gets, so checkpoints keep both:

    steps      0     1     2    | 3       4       5         at a checkpoint after step 2, 2 workers became 3:
    samples    0-3   4-7   8-11 | 12-14   15-17   18-20     batches of 4, then of 3; none is skipped or fed twice

Two runs were fed the same where their digests are the same. A digest is made of the arrays that a worker's step takes,
after all transport, and is a sum over samples: workers add theirs up, and how many shared a batch leaves no trace.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Batch = Mapping[str, NDArray[Any]]
Hear = Callable[[Mapping[str, Any], Path | None], None]
"""(a report, the checkpoint's folder or None)."""

POSITION, FED = "position.json", "fed"
_WORD = 1 << 64


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run is.

    Attributes:
      step: steps behind it.
      sample: samples that these were fed on all workers together; the index of the next one.
    """

    step: int = 0
    sample: int = 0

    def sample_at(self, step: int, batch: int) -> int:
        """The first sample of a step, with `batch` samples a step from here on.

        >>> Position(3, 12).sample_at(5, batch=3)
        18
        """
        return self.sample + (step - self.step) * batch

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        (folder / POSITION).write_text(json.dumps({"step": self.step, "sample": self.sample}))


def position_of(checkpoint: Path | None) -> Position:
    """Where a checkpoint's run stands; at the beginning without one."""
    return Position(**json.loads((checkpoint / POSITION).read_text())) if checkpoint else Position()


@dataclass(frozen=True)
class Feed:
    """One worker's batches, from a position to the last step, and what was fed so far.

    Attributes:
      stream: (first, last sample index) -> this worker's part of that range, in batches.
      begun: where this attempt begins.
      steps: of the whole run.
      batch: samples a step, over all workers together.
      rank: this worker's; it gets samples first + rank, first + rank + world, ...
      world: number of workers.
      digests: whether to digest what is fed.
    """

    stream: Callable[[int, int], Iterable[Batch]]
    begun: Position
    steps: int
    batch: int
    rank: int = 0
    world: int = 1
    digests: bool = True
    _untold: list[list[int]] = field(default_factory=list, init=False, repr=False)

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Batches from a step on. Those before `begun` are not trained on, only looked at again, and not recorded."""
        for step, batch in enumerate(self._streamed(first_step), start=first_step):
            if self.digests and step >= self.begun.step:
                self._untold.append(self._digested(step, batch))
            yield batch

    def _streamed(self, first_step: int) -> Iterable[Batch]:
        first, last = (self.begun.sample_at(step, self.batch) for step in (first_step, self.steps))
        if first >= 0:
            return self.stream(first, last)
        # Batches were smaller once, so there are too few samples to look back on: as many from the start on will do.
        looked_at = (self.begun.step - first_step) * self.batch
        return chain(self.stream(0, looked_at), self.stream(self.begun.sample, last))

    def _digested(self, step: int, batch: Batch) -> list[int]:
        first = self.begun.sample_at(step, self.batch)
        indices = range(first + self.rank, first + self.batch, self.world)
        samples = [{name: values[i] for name, values in batch.items()} for i in range(len(indices))]
        return [step, first, self.batch, batch_digest(indices, samples)]

    def told(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """A report's values, with what was fed since the last report."""
        rows = self._untold.copy()
        self._untold.clear()
        return {**line, FED: rows}

    def position(self, step: int) -> Position:
        """Where the run stands after `step` steps."""
        return Position(step, self.begun.sample_at(step, self.batch))

    def samples_of(self, step: int) -> range:
        """The samples that a step gets on all workers together."""
        first = self.begun.sample_at(step, self.batch)
        return range(first, first + self.batch)


def batch_digest(indices: Sequence[int], samples: Sequence[Mapping[str, NDArray[Any]]]) -> int:
    """The sum of samples' digests modulo 2^64: the same in any order, and sums of parts add up to the whole's."""
    return sum(sample_digest(index, sample) for index, sample in zip(indices, samples, strict=True)) % _WORD


def sample_digest(index: int, sample: Mapping[str, NDArray[Any]]) -> int:
    """64 bits that depend on a sample's index and on every bit, shape, type and name of its arrays.

    Source: BLAKE2b (Aumasson et al. 2013), cut to 64 bits: two of a million different samples share one with a chance
    of 3 in 10^8.
    """
    digest = hashlib.blake2b(str(index).encode(), digest_size=8)
    for name in sorted(sample):
        values = np.ascontiguousarray(sample[name])
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(values.data)
    return int.from_bytes(digest.digest(), "big")


# The controller.


def merged(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All workers' reports as one: the values of rank 0, the digests added up.

    Raises:
      RuntimeError: workers reported different steps, so that no step's digest is known.
    """
    parts = [report.get(FED, []) for report in reports]
    steps = [[row[:3] for row in rows] for rows in parts]
    if any(rows != steps[0] for rows in steps):
        raise RuntimeError(f"workers were fed different steps: {steps}. Their digests cannot be added up.")
    sums = [sum(row[3] for row in rows) % _WORD for rows in zip(*parts, strict=True)]
    fed = [[*row, total] for row, total in zip(steps[0], sums, strict=True)]
    return {**reports[0], FED: fed}


def recording(path: Path, hear: Hear) -> Hear:
    """A hearer that appends each step's digest to `path`, and hands the other values on.

    A line says a step, its first sample, how many there were and their digest; a step that was fed again after a
    restart has a second line, equal to the first where it was fed the same.
    """

    def heard(report: Mapping[str, Any], checkpoint: Path | None) -> None:
        rows = report.get(FED, [])
        if rows:
            with path.open("a") as file:
                file.writelines(_line(*row) for row in rows)
        hear({name: value for name, value in report.items() if name != FED}, checkpoint)

    return heard


def _line(step: int, first: int, samples: int, digest: int) -> str:
    return json.dumps({"step": step, "first_sample": first, "samples": samples, "digest": f"{digest:016x}"}) + "\n"
