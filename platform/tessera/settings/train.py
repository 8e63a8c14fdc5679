"""Settings of `tessera train`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from tessera.images.augment import Augmentation
from tessera.images.normalise import Rule
from tessera.images.symmetries import SymmetryCount
from tessera.images.targets import LabelRule, LabelsAre, UnknownLabel
from tessera.model.numerics import Numerics
from tessera.model.optimiser import OptimiserSpec
from tessera.model.spec import UnetSpec
from tessera.settings.common import TrainingTrackingSettings, check_label_rule


@dataclass(frozen=True)
class AnnotatedSections:
    """Sections of one volume and their labels.

    Args:
      volume: the raw volume, as `tessera ingest` made it: a name or a path.
      labels: its label volume, of the same shape, or of a part that lies where its translation says. What its values
        mean is said once, in `labels_are`.
      sections: which sections of the labels, such as 0-19; null takes all.
    """

    volume: str
    labels: str
    sections: str | None = None


@dataclass(frozen=True)
class DataSettings:
    """What is learned from and what is held out.

    Args:
      train: annotated sections to learn from; empty means the synthetic volume.
      validation: whole sections held out, on which the threshold is chosen.
      labels_are: mask where labels have two values, 0 for membrane and one for cell; membranes where it is the other
        way round; instances where each cell has an id of its own, above 0, as in CREMI.
      border_px: how wide a membrane is drawn where two instances touch, in pixels: half of it on either side.
      unknown_label: the value of pixels that nobody annotated, which are neither learned from nor scored: a number
        beside a mask's two, or largest for the greatest of the labels' type; null where all is annotated. The largest
        uint64 always means unknown, as in CREMI.
    """

    train: list[AnnotatedSections] = field(default_factory=list)
    validation: list[AnnotatedSections] = field(default_factory=list)
    labels_are: LabelsAre = "mask"
    border_px: int = 2
    unknown_label: UnknownLabel = None

    def __post_init__(self) -> None:
        if bool(self.train) != bool(self.validation):
            raise ValueError(
                "data.train and data.validation must both be given or both be empty: without held-out sections no "
                "threshold can be chosen. Try holding out the last 4 annotated sections."
            )
        check_label_rule("data.", self)

    @property
    def label_rule(self) -> LabelRule:
        """How labels become membrane and cell."""
        return LabelRule(self.labels_are, self.border_px, self.unknown_label)


@dataclass(frozen=True)
class LossSettings:
    """The border-weighted cross-entropy of Ronneberger 2015, equation 2, and soft Dice beside it.

    Args:
      w0: extra weight of the thinnest border between two cells; 0 switches border weights off.
      sigma_px: how fast it falls with the distance to the two nearest cells, in pixels.
      class_balance: weight membrane and cell by their inverse frequency.
      dice: weight of 1 - the soft Dice coefficient of membrane over the whole batch (Milletari, Navab and Ahmadi 2016),
        added to the cross-entropy; 0 leaves it out.
    """

    w0: float = 10.0
    sigma_px: float = 5.0
    class_balance: bool = False
    dice: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.w0 < inf and 0 < self.sigma_px < inf):
            raise ValueError(
                f"loss.w0={self.w0} must not be negative and loss.sigma_px={self.sigma_px} be above 0, both finite. "
                "The paper has 10 and 5."
            )
        if not 0 <= self.dice < inf:
            raise ValueError(
                f"loss.dice={self.dice} must not be negative and must be finite: a negative weight rewards overlap for "
                "being small. Try 1, or 0 for cross-entropy alone."
            )


@dataclass(frozen=True)
class ScheduleSettings:
    """How long, in which portions, and how often to look.

    Args:
      steps: optimiser steps.
      batch: samples a step, over all workers together; rounded to the nearest multiple of their number, to which the
        learning rate is then adapted.
      crop_px: pixels of a sample that are scored; the network's context comes on top (valid padding).
      log_every: steps between two log lines and metrics.
      checkpoint_every: steps between two checkpoints with validation.
      fed_digests: keep a digest of what each step was fed, in the run's fed.jsonl.
    """

    steps: int = 240
    batch: int = 4
    crop_px: int = 192
    log_every: int = 10
    checkpoint_every: int = 120
    fed_digests: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "crop_px", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"schedule.{name}={getattr(self, name)} must be at least 1.")

    def batch_on(self, workers: int) -> int:
        """Samples a step on so many workers: the multiple of their number nearest to `batch`, of two the smaller.

        >>> [ScheduleSettings(batch=4).batch_on(workers) for workers in (1, 2, 3, 4, 8)]
        [4, 4, 3, 4, 8]
        """
        each = -(-(2 * self.batch - workers) // (2 * workers))
        return max(1, each) * workers


@dataclass(frozen=True)
class InferenceSettings:
    """How held-out sections are predicted, and with the finished model every volume.

    Args:
      symmetries: orientations to average over: 1 as is, 4 flips, 8 flips and turns by 90 degrees, at as many times the
        cost. The threshold is chosen on the averages, and the model keeps the number.
    """

    symmetries: SymmetryCount = 1


@dataclass(frozen=True)
class ResourceSettings:
    """What training may occupy.

    Args:
      workers: data-parallel workers, or a range such as 2-8: as many of these as fit, also when nodes come and go on
        the way. Each change goes back to the last checkpoint.
      use_gpu: auto takes one GPU per worker where Ray sees that many.
      max_failures: restarts from the last checkpoint after lost workers.
      resize_every_s: seconds between two looks at whether more workers fit, where workers is a range.
    """

    workers: int | str = 1
    use_gpu: Literal["auto", "yes", "no"] = "auto"
    max_failures: int = 3
    resize_every_s: float = 60.0

    def __post_init__(self) -> None:
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", str(self.workers))
        if not found or int(found[1]) < 1 or int(found[2] or found[1]) < int(found[1]) or self.max_failures < 0:
            raise ValueError(
                f"resources.workers={self.workers} must be at least 1, or a range such as 2-8, and "
                f"max_failures={self.max_failures} at least 0."
            )
        if not 0 < self.resize_every_s < inf:
            raise ValueError(f"resources.resize_every_s={self.resize_every_s} must be above 0 and finite. Try 60.")

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change on the way."""
        return "-" in str(self.workers)

    @property
    def worker_range(self) -> tuple[int, int]:
        """The least and the greatest number of workers; equal where it is fixed.

        >>> ResourceSettings(workers=2).worker_range, ResourceSettings(workers="2-8").worker_range
        ((2, 2), (2, 8))
        """
        least, _, most = str(self.workers).partition("-")
        return int(least), int(most or least)


@dataclass(frozen=True)
class TrainSettings:
    """Train a U-Net on annotated sections, track it in MLflow and register its bundle.

    Args:
      name: of the run; its folder is TESSERA_HOME/runs/NAME; null makes one from the time.
      refit: name of a finished run of the same settings but for the seed: learn from its training and validation
        sections together, with its threshold frozen and nothing chosen.
      start_from: models:/NAME/VERSION or the folder of a bundle, whose weights training begins with instead of random
        ones; the network must be the same but for padding and dropout, and wants a smaller learning rate.
      keep_normalisation: with start_from, true keeps that model's mean and spread of grey values; false takes those of
        the new sections, which fits another microscope better.
      data: what is learned from and what is held out.
      normalisation: global takes one mean and spread for all voxels; per_section first brings each section to a common
        scale by percentiles of its own grey values, for volumes whose sections drift in brightness or contrast.
      network: the U-Net.
      augmentation: what is done to each sample.
      loss: the border-weighted cross-entropy, and soft Dice.
      optimiser: the optimiser and its schedule.
      schedule: how long and how often.
      inference: how held-out sections are predicted.
      resources: workers and GPUs.
      numerics: precision and determinism.
      tracking: where MLflow keeps the run.
      register_as: name of the model in MLflow's registry.
      seed: of everything random.
    """

    name: str | None = None
    refit: str | None = None
    start_from: str | None = None
    keep_normalisation: bool = False
    data: DataSettings = field(default_factory=DataSettings)
    normalisation: Rule = "global"
    network: UnetSpec = field(default_factory=lambda: UnetSpec(12, 3, "same", batch_norm=True, dropout=0.0))
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(
            elastic_sigma_px=8.0, rotation_degrees=180.0, flips=True, contrast=0.2, brightness=0.2, noise_sigma=0.05
        )
    )
    loss: LossSettings = field(default_factory=LossSettings)
    optimiser: OptimiserSpec = field(default_factory=lambda: OptimiserSpec(learning_rate=3e-3, warmup_steps=20))
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    numerics: Numerics = field(default_factory=Numerics)
    tracking: TrainingTrackingSettings = field(default_factory=TrainingTrackingSettings)
    register_as: str = "tessera-unet"
    seed: int = 2015

    def __post_init__(self) -> None:
        try:
            self.network.input_extent(self.schedule.crop_px)
        except ValueError as error:
            raise ValueError(f"schedule.crop_px: {error}") from None
        self._check_names()
        if self.keep_normalisation and self.start_from is None:
            raise ValueError(
                "keep_normalisation=true without start_from: there is no model whose statistics could be kept. Give "
                "--start_from models:/NAME/1, or leave it false."
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} does not fit the generators of initial weights: give 0 to 2^32 - 1.")

    def _check_names(self) -> None:
        for key, name in (("name", self.name), ("refit", self.refit)):
            if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(
                    f"{key}={name!r} becomes a folder: use letters, digits, '-', '_' and '.' only, and no '.' or '-' "
                    "first. Try membranes-1."
                )
        if not self.register_as.strip() or set(self.register_as) & set("/:"):
            raise ValueError(
                f"register_as={self.register_as!r} is no name for a model: MLflow refuses '/', ':' and nothing at all, "
                "after training. Try tessera-unet."
            )
