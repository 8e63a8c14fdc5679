"""Annotated sections to a registered model: checks, a training group, a bundle.

driver      checks the data, creates the MLflow run, starts the group, registers the bundle
worker      training_loop.py
controller  hearing.py: keeps every report on disk, from where the driver hands it to MLflow
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from tessera.storage.files import write_atomically
from tessera.storage.locations import place_of
from tessera.storage.locks import alone_in
from tessera.storage.volumes import open_volume
from tessera.tracking.champion import crown
from tessera.tracking.curves import log_threshold_curve
from tessera.tracking.models import register_bundle
from tessera.tracking.outbox import Outbox
from tessera.tracking.runs import Tracker, check_tracking, tracked_run, tracking_uri
from tessera.workflows.annotated import AnnotatedSet, check_neighbour_levels, check_scorable, load_annotated
from tessera.workflows.feed import merged, recording
from tessera.workflows.fine_tuning import inherit, parent_of, tell_parent
from tessera.workflows.first_batch import KEPT
from tessera.workflows.hearing import hear_report
from tessera.workflows.plain import plain
from tessera.workflows.progress import Progress, cut_unfinished_line, following
from tessera.workflows.synthetic import SyntheticVolumes, synthetic_volumes
from tessera.workflows.training_loop import CURVE, Split, training_loop
from tessera.workflows.training_plan import Prepared, RunPlace

if TYPE_CHECKING:
    from tessera.engine.placement import ClusterSize, TrainShare

_log = logging.getLogger(__name__)

PROGRESS, RUN, FED_DIGESTS = "progress.jsonl", "run.json", "fed.jsonl"
OUTBOX, BUNDLE = "outbox", "bundle"
PARTS = ("train", "validation")
SYNTHETIC_SHAPE, SYNTHETIC_SEED = (24, 512, 512), 2012


@dataclass(frozen=True)
class TrainResult:
    """What a training run left behind.

    Attributes:
      name: of the run.
      run_id: MLflow's.
      bundle: folder with weights.keras and contract.json.
      model_uri: models:/NAME/VERSION.
      contract: the bundle's, with the threshold that was chosen.
    """

    name: str
    run_id: str
    bundle: Path
    model_uri: str
    contract: Contract


# The driver.


def train(settings: TrainSettings) -> TrainResult:
    """Run the workflow.

    Raises:
      ValueError, OSError: something does not fit, before workers start.
      RuntimeError: training failed, or MLflow did not take all of it; the last checkpoint is kept under
        TESSERA_HOME/runs, and the same call goes on from it.
    """
    ready = prepared(settings)
    name = settings.name or time.strftime("train-%Y%m%d-%H%M%S")
    place = RunPlace(home() / "runs" / name)
    with fitted(ready, place) as (run, checkpoint):
        with _all_taken(run, checkpoint, name):
            model_uri = _conclude(run, settings, checkpoint, ready.prints["validation"])
        bundle = place.folder / BUNDLE  # its presence says that the run is finished: it comes last, and whole
        draft = place.folder / f".{BUNDLE}"
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(checkpoint / BUNDLE, draft)
        draft.rename(bundle)
    return TrainResult(name, run.run_id, bundle, model_uri, load_contract(bundle))


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


@contextmanager
def fitted(ready: Prepared, place: RunPlace) -> Iterator[tuple[Tracker, Path]]:
    """Train, or go on with what was interrupted; the MLflow run and the last checkpoint's folder.

    The run is FINISHED when the block ends.

    Raises:
      ValueError, OSError: the folder holds a finished run, or one of other settings, or another process is at it.
      RuntimeError: training failed, or MLflow did not take all of it; the last checkpoint is kept in the folder.
    """
    settings, name = ready.settings, place.folder.name
    uri = tracking_uri(settings.tracking.uri, home())
    resume = _earlier_run(place.folder, settings, ready.prints)
    own = {"tessera.workflow": "train", "tessera.folder": str(place.folder), "tessera.version": __version__}
    tags, experiment, told = {**own, **place.tags}, settings.tracking.experiment, plain(settings)
    with (
        placed(settings, place.cluster) as share,
        alone_in(place.folder),
        tracked_run(uri, experiment, name, told, tags, home(), resume=resume) as run,
    ):
        begun = {"run_id": run.run_id, "settings": plain(settings), "fingerprints": ready.prints}
        write_atomically(place.folder / RUN, json.dumps(begun, indent=2).encode())
        fingerprint = ready.contract.training["fingerprint"]
        _tell_lineage(run, settings, ready.split, fingerprint, ready.prints["validation"])
        if ready.parent is not None:
            tell_parent(run, ready.parent)
        contract = ready.contract.with_training(
            ready.contract.threshold, run_id=run.run_id, run_name=name, refit_of=settings.refit
        )
        outbox = Outbox(run, place.folder / OUTBOX)
        checkpoint = _run_group(ready, share, contract, outbox, place)
        with _all_taken(run, checkpoint, name):
            outbox.hand_in()
        yield run, checkpoint


@contextmanager
def _all_taken(run: Tracker, checkpoint: Path, name: str) -> Iterator[None]:
    """Say where a trained model lies, and how to go on, where MLflow does not take what the block tells it.

    Raises:
      RuntimeError: whatever the block raised.
    """
    try:
        yield
    except Exception as error:  # MLflow's, its client's and the network's types have no common base
        raise RuntimeError(
            f"training {name} is done, but MLflow has not all of it: {error}. The model is kept in "
            f"{checkpoint / BUNDLE} and can be used from there. Once MLflow at {run.uri} answers, the same command "
            "hands the rest in and registers the model, without training again."
        ) from error


def _tell_lineage(run: Tracker, settings: TrainSettings, split: Split, learned: str, held_out: str) -> None:
    """Which data the run reads, and which run it repeats."""
    for part in split.learned:
        run.dataset(part.volume, learned, "training")
    for part in split.held_out:
        run.dataset(part.volume, held_out, "validation")
    if settings.refit is not None:
        begun = json.loads((home() / "runs" / settings.refit / RUN).read_text())
        run.link("refit_of", begun["run_id"])


def _conclude(run: Tracker, settings: TrainSettings, checkpoint: Path, held_out: str) -> str:
    """Log the final scores, register the bundle and let it compete; returns its URI."""
    final = load_contract(checkpoint / BUNDLE)
    if (checkpoint / CURVE).exists():
        rows = json.loads((checkpoint / CURVE).read_text())
        log_threshold_curve(run, rows, final.threshold, settings.schedule.steps)
    model_uri = register_bundle(run, checkpoint / BUNDLE, settings.register_as, _requirements())
    run.tags({"tessera.model": model_uri})
    score = final.training["validation"].get("v_rand_frozen")
    _log.info("%s: %s", settings.register_as, crown(run.uri, model_uri, score, held_out))
    return model_uri


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
    return [(_resolved(part.volume), z) for z in parse_sections(part.sections, open_volume(part.volume).shape[0])]


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


def _earlier_run(folder: Path, settings: TrainSettings, prints: Mapping[str, str]) -> str | None:
    """The MLflow run of an interrupted training of this name and settings.

    Raises:
      FileExistsError: it is finished, or had other settings.
    """
    if not (folder / RUN).exists():
        return None
    earlier = json.loads((folder / RUN).read_text())
    if (folder / BUNDLE).exists():
        raise FileExistsError(f"run {folder.name} is finished ({folder}): give another --name, or leave it out.")
    if earlier["settings"] != plain(settings):
        raise FileExistsError(
            f"run {folder.name} was begun with other settings ({folder / RUN}): resuming would mix them. "
            "Give another --name, or the same settings."
        )
    check_same_data(folder, earlier, prints)
    _log.info("going on with the interrupted run %s", folder.name)
    return str(earlier["run_id"])


@contextmanager
def placed(settings: TrainSettings, cluster: ClusterSize | None) -> Iterator[TrainShare]:
    """Be connected to Ray, with a share for each training worker; says what the number of workers does to batches.

    Raises:
      ValueError: the cluster can never run that many.
    """
    from tessera.engine.placement import train_share
    from tessera.engine.session import cluster_size, connected

    resources = settings.resources
    with connected():
        share = train_share(resources.worker_range, resources.use_gpu, cluster or cluster_size())
        if rounded := rounded_batches(settings):
            _log.warning("%s", rounded)
        yield share


def rounded_batches(settings: TrainSettings) -> str:
    """A sentence on batches that the workers cannot share evenly; empty where they share all of them."""
    wanted = settings.schedule.batch
    least, most = settings.resources.worker_range
    batches = {workers: settings.schedule.batch_on(workers) for workers in range(least, most + 1)}
    rates = {batch: settings.optimiser.for_batch(batch, wanted).learning_rate for batch in batches.values()}
    changed = [
        f"{batch} samples a step on {workers} workers, learning rate {rates[batch]:.4g}"
        for workers, batch in batches.items()
        if batch != wanted
    ]
    if not changed:
        return ""
    return f"schedule.batch={wanted} is rounded where workers cannot share it evenly: {'; '.join(changed)}"


def _run_group(ready: Prepared, share: TrainShare, contract: Contract, outbox: Outbox, place: RunPlace) -> Path:
    from tessera.engine.checkpoints import last_heard
    from tessera.engine.train import TrainGroup, run_group

    settings, resources = ready.settings, ready.settings.resources
    progress, fed = place.folder / PROGRESS, place.folder / FED_DIGESTS
    last = last_heard(place.folder)
    if last is not None and last.metrics["step"] == settings.schedule.steps:
        return last.folder  # it took all its steps, and was cut before it was registered
    for file in (progress, fed):
        cut_unfinished_line(file)
    config = {
        "settings": settings,
        "split": ready.split,
        "contract": contract,
        "start_from": ready.parent.bundle if ready.parent else None,
        "first_batch": place.folder / KEPT,
    }
    group = TrainGroup(
        place.folder.name,
        place.folder.parent,
        resources.worker_range if resources.is_elastic else resources.worker_range[0],
        share.cpus,
        use_gpu=share.gpu,
        max_failures=resources.max_failures,
        resize_every_s=resources.resize_every_s,
    )
    hear = recording(fed, partial(hear_report, outbox, Progress(progress)))
    with following(progress, place.tell or partial(_tell, settings.schedule.steps)), outbox.handing_in():
        return run_group(training_loop, config, group, hear, merged)


def _tell(steps: int, line: Mapping[str, Any]) -> None:
    shown = ", ".join(f"{k} {v:.4g}" for k, v in line.items() if k not in ("step", "epoch") and "/" not in k)
    _log.info("step %d/%d: %s", line["step"], steps, shown)


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in ("tensorflow", "keras", "numpy", "opencv-python-headless", "scipy")]
