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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera import __version__
from tessera.model.bundle import Contract, load_contract
from tessera.settings.places import home
from tessera.settings.train import TrainSettings
from tessera.storage.files import write_atomically
from tessera.storage.locks import alone_in
from tessera.tracking.champion import crown
from tessera.tracking.curves import log_threshold_curve
from tessera.tracking.models import register_bundle
from tessera.tracking.outbox import Outbox
from tessera.tracking.runs import Tracker, tracked_run, tracking_uri
from tessera.workflows.feed import merged, recording
from tessera.workflows.fine_tuning import tell_parent
from tessera.workflows.first_batch import KEPT
from tessera.workflows.hearing import hear_report
from tessera.workflows.plain import plain
from tessera.workflows.progress import Progress, cut_unfinished_line, following
from tessera.workflows.training_loop import CURVE, Split, training_loop
from tessera.workflows.training_plan import BUNDLE, RUN, Prepared, RunPlace, check_same_data, prepared

if TYPE_CHECKING:
    from tessera.engine.placement import ClusterSize, TrainShare

_log = logging.getLogger(__name__)

PROGRESS, FED_DIGESTS, OUTBOX = "progress.jsonl", "fed.jsonl", "outbox"


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
