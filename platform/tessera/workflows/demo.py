"""The whole main job on the synthetic volume, with a picture and the scores at its end.

Every part is the real one: Ray Train and Ray Data learn, Ray actors predict and segment, Zarr holds the volumes and
MLflow the runs.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.images.smoothing import smoothed_brightness
from tessera.metrics.isbi import finish, score_section
from tessera.settings.common import RunnerSettings
from tessera.settings.demo import DemoSettings
from tessera.settings.evaluate import EvaluateSettings
from tessera.settings.places import home
from tessera.settings.predict import PredictSettings
from tessera.settings.segment import SegmentSettings
from tessera.settings.train import DataSettings, ScheduleSettings, TrainSettings
from tessera.storage.files import write_atomically
from tessera.storage.locations import Place
from tessera.storage.volumes import open_volume
from tessera.tracking.pictures import contact_sheet, png_bytes
from tessera.tracking.runs import Tracker, tracking_uri
from tessera.workflows.block_jobs import session
from tessera.workflows.evaluate import evaluate
from tessera.workflows.panels import SectionPanels
from tessera.workflows.predict import predict
from tessera.workflows.segment import segment
from tessera.workflows.synthetic import SyntheticVolumes, synthetic_volumes
from tessera.workflows.train import TrainResult, train
from tessera.workflows.training_plan import synthetic_data

_log = logging.getLogger(__name__)

SEED = 2012


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
      truth: the synthetic volumes.
      trained: the training run.
      membranes: path of the probability volume.
      cells: path of the label volume.
      scores: as `tessera evaluate` prints them, on the sections held out.
      raw_v_rand: the best V_Rand of the smoothed raw sections: what needs no network.
      picture: path of the picture.
    """

    truth: SyntheticVolumes
    trained: TrainResult
    membranes: Place
    cells: Place
    scores: dict[str, Any]
    raw_v_rand: float
    picture: Path


def demo(settings: DemoSettings) -> str:
    """Run it; returns what to print: where everything lies and how to open it."""
    started = time.perf_counter()
    result = run_demo(settings)
    return _summary(settings, result, time.perf_counter() - started)


def run_demo(settings: DemoSettings) -> DemoResult:
    """Make the volume, train, predict, segment, evaluate and draw."""
    shape = (settings.sections, settings.size, settings.size)
    name = time.strftime("demo-%Y%m%d-%H%M%S")
    held_out = f"{settings.sections * 3 // 4}-{settings.sections - 1}"
    workers = 2
    _log.info("1/5 making the synthetic volume, %s voxels", "x".join(map(str, shape)))
    truth = synthetic_volumes(shape, SEED, RunnerSettings(engine="serial"), settings.phantom)
    with session(RunnerSettings()):
        _log.info("2/5 training on its first half, choosing the threshold on the quarter after it")
        trained = train(_train_settings(settings, synthetic_data(shape, truth), name))
        _log.info("3/5 predicting the whole volume on 2 workers")
        membranes = predict(
            PredictSettings(
                str(truth.raw), trained.model_uri, f"{name}-membranes", workers=workers, tracking=settings.tracking
            )
        )
        _log.info("4/5 cutting it into cells")
        cells = segment(SegmentSettings(str(membranes), f"{name}-cells", workers=workers, tracking=settings.tracking))
    _log.info("5/5 scoring sections %s, which nothing has seen", held_out)
    scores = evaluate(
        EvaluateSettings(str(membranes), str(truth.labels), held_out, cells=str(cells), tracking=settings.tracking)
    )
    raw = smoothed_raw_score(truth, scores["sections"])
    sheet = draw(truth, membranes, cells, scores["sections"][:3])
    picture = home() / "runs" / name / "sections.png"
    write_atomically(picture, png_bytes(sheet))
    Tracker(tracking_uri(settings.tracking.uri, home()), trained.run_id).picture("sections", sheet, settings.steps)
    return DemoResult(truth, trained, membranes, cells, scores, raw, picture)


def _train_settings(settings: DemoSettings, data: DataSettings, name: str) -> TrainSettings:
    schedule = replace(ScheduleSettings(), steps=settings.steps, checkpoint_every=max(1, settings.steps // 2))
    return TrainSettings(
        name=name, data=data, normalisation=settings.normalisation, schedule=schedule, tracking=settings.tracking
    )


def smoothed_raw_score(truth: SyntheticVolumes, sections: list[int]) -> float:
    """The best V_Rand over thresholds of the raw sections, smoothed: the baseline that a network has to beat."""
    raw, labels = open_volume(truth.raw), open_volume(truth.labels)
    scored = [score_section(smoothed_brightness(raw.section(z)), labels.section(z)) for z in sections]
    return finish(scored).best()["v_rand"]


def draw(truth: SyntheticVolumes, membranes: Place, cells: Place, sections: list[int]) -> NDArray[np.uint8]:
    """Raw, probability, truth and cells of some sections."""
    panels = SectionPanels(open_volume(membranes), open_volume(truth.labels), open_volume(cells))
    return contact_sheet([panels.of(z) for z in sections], [f"section {z}" for z in sections])


def _summary(settings: DemoSettings, result: DemoResult, seconds: float) -> str:
    frozen, best = result.scores["frozen_threshold"], result.scores["maximum_over_thresholds"]
    uri = tracking_uri(settings.tracking.uri, home())
    return "\n".join(
        [
            "",
            f"The whole main job took {seconds / 60:.1f} minutes.",
            "",
            f"scores on {len(result.scores['sections'])} held-out sections   V_Rand   V_Info   pixel error",
            f"  at the frozen threshold {frozen['threshold']:<8.2g} {frozen['v_rand']:.4f}   {frozen['v_info']:.4f}   "
            f"{frozen['pixel_error']:.4f}",
            f"  maximum over thresholds          {best['v_rand']:.4f}   {best['v_info']:.4f}   "
            f"{best['pixel_error']:.4f}",
            f"  smoothed raw, its maximum        {result.raw_v_rand:.4f}",
            "",
            f"segmented volume   {result.cells}   (OME-Zarr, uint64 ids)",
            f"probability        {result.membranes}   (OME-Zarr, uint8, 255 = membrane)",
            f"raw volume         {result.truth.raw}",
            f"picture            {result.picture}",
            f"model              {result.trained.model_uri}   ({result.trained.bundle})",
            "",
            "Open the volumes with napari (napari --plugin napari-ome-zarr PATH) or zarr.open(PATH)['0'].",
            "Browse the runs, their curves and pictures with:",
            f"  .venv/bin/mlflow ui --backend-store-uri {uri}     then open http://127.0.0.1:5000",
        ]
    )
