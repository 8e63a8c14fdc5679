"""Training in this process, without Ray and MLflow: the real samples, network, steps and validation, on the phantom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.phantom import VOXEL_SIZE_NM, Phantom
from tessera.model.bundle import Contract, load_contract, load_model
from tessera.model.training import FitPlan, Snapshot, fit
from tessera.settings.train import TrainSettings
from tessera.workflows.annotated import AnnotatedSet
from tessera.workflows.training_loop import make_sample, sampling_source, validate


def phantom_sections(first: int, count: int, size: int = 256, phantom: Phantom | None = None) -> AnnotatedSet:
    """Wholly annotated sections of the synthetic volume."""
    block = (phantom or Phantom()).block(Box((first, 0, 0), (first + count, size, size)))
    membrane = tuple(block.membrane.astype(np.uint8))
    names = tuple(f"phantom section {first + z}" for z in range(count))
    return AnnotatedSet(tuple(block.raw), membrane, names, "uint8", VOXEL_SIZE_NM, "")


def learned(
    folder: Path, settings: TrainSettings, contract: Contract, sections: AnnotatedSet, start_from: Path | None = None
) -> Path:
    """The bundle that a fit to these sections ends with."""
    source, batch = sampling_source(settings, contract, sections), settings.schedule.batch

    def batches(first: int) -> Iterator[dict[str, NDArray[Any]]]:
        for step in count(first):
            samples = [make_sample(source, index) for index in range(step * batch, (step + 1) * batch)]
            yield {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    fit(
        batches,
        settings.network,
        settings.optimiser,
        FitPlan(settings.schedule.steps, settings.schedule.steps, settings.schedule.steps, settings.seed),
        on_step=lambda line: None,
        on_checkpoint=lambda snapshot: snapshot.save(folder, contract),
        start_from=start_from,
    )
    return folder / "bundle"


def scores(bundle: Path, held_out: AnnotatedSet, **changed: Any) -> dict[str, float]:
    """The best scores over thresholds of a bundle on held-out sections; `changed` replaces parts of its contract."""
    contract = replace(load_contract(bundle), **changed)
    return validate(Snapshot(0, contract.network, load_model(bundle), {}), contract, held_out).scores
