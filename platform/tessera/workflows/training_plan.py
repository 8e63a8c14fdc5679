"""What a training has before it starts: its settings and data looked at together, and its place.

Apart from `train`, because a search plans many trainings and each of its trials runs one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.model.bundle import Contract
from tessera.settings.train import TrainSettings
from tessera.workflows.models import FoundModel
from tessera.workflows.training_loop import Split

if TYPE_CHECKING:
    from tessera.engine.placement import ClusterSize


@dataclass(frozen=True)
class Prepared:
    """A training that was checked and may begin.

    Attributes:
      settings: with absolute paths.
      prints: fingerprint of each part of the data.
      split: what is learned from and what is held out.
      contract: with the data's statistics; in a refit with the frozen threshold.
      parent: the model whose weights it begins with; None begins with random ones.
    """

    settings: TrainSettings
    prints: dict[str, str]
    split: Split
    contract: Contract
    parent: FoundModel | None = None


@dataclass(frozen=True)
class RunPlace:
    """Where a training lies and what it may take: a run by itself, or one trial of a search.

    Attributes:
      folder: absolute; its last part is the run's name.
      tags: of its MLflow run, besides its own.
      cluster: the part of the cluster to share among workers; None takes all of it.
      tell: called in the driver with each line of progress; None writes the log.
    """

    folder: Path
    tags: Mapping[str, str] = field(default_factory=dict)
    cluster: ClusterSize | None = None
    tell: Callable[[Mapping[str, Any]], None] | None = None
