"""What a training has before it starts: its settings and data looked at together, and its place.

Whatever can be wrong is said here, before Ray starts or a run is begun. Apart from `train`, because a search plans many
trainings and each of its trials runs one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera import __version__
from tessera.images.augment import Augmentation
from tessera.images.normalise import estimate
from tessera.model.bundle import Contract, load_contract
from tessera.settings.common import RunnerSettings
from tessera.settings.places import home, input_path
from tessera.settings.sections import parse_sections
from tessera.settings.train import AnnotatedSections, DataSettings, TrainSettings
from tessera.storage.locations import place_of
from tessera.storage.volumes import open_volume
from tessera.tracking.runs import check_tracking, tracking_uri
from tessera.workflows.alignment import labels_origin
from tessera.workflows.annotated import AnnotatedSet, check_neighbour_levels, check_scorable, load_annotated
from tessera.workflows.fine_tuning import inherit, parent_of
from tessera.workflows.models import FoundModel
from tessera.workflows.plain import plain
from tessera.workflows.synthetic import SyntheticVolumes, synthetic_volumes
from tessera.workflows.training_loop import Split

if TYPE_CHECKING:
    from tessera.engine.placement import ClusterSize

_log = logging.getLogger(__name__)

RUN, BUNDLE = "run.json", "bundle"
PARTS = ("train", "validation")
SYNTHETIC_SHAPE, SYNTHETIC_SEED = (24, 512, 512), 2012


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


def prepared(settings: TrainSettings) -> Prepared:
    """Look at settings and data together, before anything starts.

    Raises:
      ValueError, OSError: something does not fit.
    """
    settings = with_absolute_data(settings)
    check_disjoint(settings.data)
    load = partial(load_for, settings)
    prints = {part: load(getattr(settings.data, part)).fingerprint for part in PARTS}
    split, threshold = chosen_split(settings, prints)
    training = load(split.learned)
    contract = first_contract(settings, training)
    parent = parent_of(settings)
    if parent is not None:
        contract = inherit(contract, parent, keep_normalisation=settings.keep_normalisation)
    check_turns(settings.augmentation, training.voxel_size_nm)
    if split.held_out:
        held_out = load(split.held_out)
        _check_same_kind(contract, held_out)
        check_scorable(held_out)
    check_tracking(tracking_uri(settings.tracking.uri, home()))
    return Prepared(settings, prints, split, contract.with_training(threshold), parent)


def check_turns(augmentation: Augmentation, voxel_size_nm: tuple[float, float, float]) -> None:
    """Refuse turns that would stretch cells: pixels of these volumes are not square.

    Raises:
      ValueError: says what to switch off.
    """
    _, y, x = voxel_size_nm
    replace(augmentation, isotropic_in_plane=augmentation.isotropic_in_plane and bool(np.isclose(y, x)))


def load_for(settings: TrainSettings, chosen: Sequence[AnnotatedSections]) -> AnnotatedSet:
    """Annotated sections, with as many neighbours as the run's network sees, checked for its normalisation.

    Raises:
      FileNotFoundError, ValueError: see `load_annotated` and `check_neighbour_levels`.
    """
    found = load_annotated(chosen, settings.data, settings.network.input_sections)
    if settings.normalisation == "per_section":
        check_neighbour_levels(found)
    return found


def chosen_split(settings: TrainSettings, prints: Mapping[str, str]) -> tuple[Split, float | None]:
    """What to learn from, and the threshold that is frozen already: in a refit that of the run it repeats.

    Raises:
      FileNotFoundError: the run to refit is not there or not finished.
      ValueError: it had other settings, so that what it chose does not hold.
    """
    data = settings.data
    if settings.refit is None:
        return Split(data.train, data.validation), None
    folder = home() / "runs" / settings.refit
    if not (folder / BUNDLE).exists():
        raise FileNotFoundError(f"refit={settings.refit}: there is no finished run in {folder}. Train it first.")
    begun = json.loads((folder / RUN).read_text())
    earlier = begun["settings"]
    check_same_data(folder, begun, prints)
    # A recipe is chosen with one seed, and refitted with as many as its spread needs.
    same = {"name": None, "refit": None, "register_as": None, "tracking": None, "seed": None}
    if {**earlier, **same} != {**plain(settings), **same}:
        raise ValueError(
            f"refit={settings.refit}: that run had other settings ({folder / RUN}), so its threshold was chosen for "
            "another recipe. Give the same --config and options."
        )
    return Split(data.train + data.validation, []), load_contract(folder / BUNDLE).threshold


def with_absolute_data(settings: TrainSettings) -> TrainSettings:
    """Settings whose volumes are absolute paths that any worker can open; the synthetic ones where none is named."""
    data = settings.data
    if not data.train:
        _log.warning(
            "no data.train is given: training on the embedded synthetic volume, a phantom of serial-section EM"
        )
        volumes = synthetic_volumes(SYNTHETIC_SHAPE, SYNTHETIC_SEED, RunnerSettings(engine="serial"))
        return replace(settings, data=synthetic_data(SYNTHETIC_SHAPE, volumes))

    def absolute(parts: list[AnnotatedSections]) -> list[AnnotatedSections]:
        return [replace(p, volume=str(input_path(p.volume)), labels=str(input_path(p.labels))) for p in parts]

    return replace(settings, data=replace(data, train=absolute(data.train), validation=absolute(data.validation)))


def synthetic_data(shape: tuple[int, int, int], volumes: SyntheticVolumes) -> DataSettings:
    """The synthetic volume's split: the first half to learn from, a quarter to choose on, a quarter left alone."""
    half, three_quarters = shape[0] // 2, shape[0] * 3 // 4

    def part(sections: str) -> list[AnnotatedSections]:
        return [AnnotatedSections(str(volumes.raw), str(volumes.labels), sections)]

    return DataSettings(part(f"0-{half - 1}"), part(f"{half}-{three_quarters - 1}"))


def check_disjoint(data: DataSettings) -> None:
    """Refuse a section that is both learned from and validated on.

    Raises:
      ValueError: names the sections; a score on them would measure memory.
    """
    learned = {key for part in data.train for key in _section_keys(part)}
    shared = sorted({key for part in data.validation for key in _section_keys(part)} & learned)
    if shared:
        raise ValueError(
            f"sections {[z for _, z in shared]} of {shared[0][0]} are in both data.train and data.validation: the "
            "threshold would be chosen on what was learned by heart. Take them out of one."
        )


def _resolved(volume: str) -> str:
    """One text for each volume, by whatever links it is reached."""
    place = place_of(volume)
    return str(place.resolve() if isinstance(place, Path) else place)


def _section_keys(part: AnnotatedSections) -> list[tuple[str, int]]:
    """Sections in the volume's numbering: labels of a part count from where they lie."""
    labels = open_volume(part.labels)
    first = labels_origin(open_volume(part.volume), labels)[0]
    return [(_resolved(part.volume), first + z) for z in parse_sections(part.sections, labels.shape[0])]


def first_contract(settings: TrainSettings, training: AnnotatedSet) -> Contract:
    """The contract before training: the data's statistics, frozen.

    Raises:
      ValueError: the symmetries to average over turn voxels that are not square.
    """
    facts = {"fingerprint": training.fingerprint, "sections": list(training.names), "version": __version__}
    return Contract(
        settings.network,
        estimate(settings.normalisation, training.raw),
        training.dtype,
        training.voxel_size_nm,
        training=facts,
        symmetries=settings.inference.symmetries,
    )


def _check_same_kind(contract: Contract, validation: AnnotatedSet) -> None:
    ours, theirs = (contract.input_dtype, contract.voxel_size_nm), (validation.dtype, validation.voxel_size_nm)
    if ours != theirs:
        raise ValueError(
            f"training sections are {ours[0]} of {ours[1]} nm, validation sections {theirs[0]} of {theirs[1]} nm: the "
            "threshold would be chosen on other data than it is used for. Give both from the same kind of volume."
        )


def check_same_data(folder: Path, begun: Mapping[str, Any], prints: Mapping[str, str]) -> None:
    """Refuse to go on with what learned from other voxels.

    Raises:
      ValueError: names the parts of the data that changed.
    """
    differing = [part for part in PARTS if begun["fingerprints"][part] != prints[part]]
    if differing:
        raise ValueError(
            f"run {folder.name} learned from other voxels: data.{' and data.'.join(differing)} changed since (ingested "
            "anew?). What it learned and chose does not hold for them. Train under another --name."
        )
