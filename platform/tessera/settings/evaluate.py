"""Settings of `tessera evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.images.targets import LabelRule, LabelsAre, UnknownLabel
from tessera.settings.common import RunnerSettings, StorageSettings, TrackingSettings, check_label_rule


@dataclass(frozen=True)
class EvaluateSettings(RunnerSettings):
    """Score membrane probability with the ISBI 2012 metrics, or 3D cells by VOI, Rand and CREMI score.

    Args:
      volume: the probability volume that `tessera predict` wrote: a name, a path or a URL; without it `cells` are
        scored.
      labels: the ground truth, of the same shape, or of a part that lies where its translation says. Cells are scored
        against ids: voxels of id 0 are not scored.
      sections: which sections of the labels to score, such as 24-29; null takes all valid ones.
      threshold: the frozen threshold whose scores come first; null takes the one chosen in training.
      labels_are: mask where labels are 0 on membrane and anything else in a cell; membranes where it is the other way
        round; instances where each cell has an id of its own. Null takes mask, and instances to score cells alone.
      border_px: how wide a membrane is drawn where two instances touch, in pixels: half of it on either side.
      unknown_label: the labels' value for voxels that nobody annotated, which are not scored: a number, or largest for
        the greatest of the labels' type; null where all is annotated. The largest uint64 always means unknown, as in
        CREMI.
      thresholds: of agglomeration: what the fragments of `cells` would be worth at each, as curves in the run; only for
        cells alone that tessera segment agglomerated.
      cells: a volume of ids. With `volume` it is shown beside the truth in the run's pictures; alone it is scored,
        block by block.
      engine: ray runs blocks on a pool of actors; serial runs them one by one in this process, without Ray.
      workers: number of actors; 0 chooses one per GPU, else one per 8 cores.
      attempts: tries a block gets before it is listed as failed and the rest goes on.
      retry_failed: try blocks that an earlier run gave up again; without it they stay listed as failed.
      recheck: count the overlaps of every block again whose table is not as it was recorded.
      lease_expiry_s: seconds without a sign of life of this job's driver after which another machine may go on with its
        blocks; on the same machine a driver that is gone is known at once.
      tracking: where MLflow keeps the run.
      storage: how volumes in object stores are reached.
    """

    volume: str = ""
    labels: str = ""
    sections: str | None = None
    threshold: float | None = None
    labels_are: LabelsAre | None = None
    border_px: int = 2
    unknown_label: UnknownLabel = None
    cells: str | None = None
    thresholds: list[float] = field(default_factory=list)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.volume and self.cells is None:
            raise ValueError("volume is not given. Try --volume my-membranes, or --cells my-cells to score cells.")
        if not self.labels:
            raise ValueError("labels is not given. Try --labels my-labels.")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} is no probability below 1. Try 0.5.")
        check_label_rule("", self)
        if self.thresholds and (self.volume or not all(0 <= t <= 1 for t in self.thresholds)):
            raise ValueError(
                f"thresholds={self.thresholds}: these are probabilities, at which cells alone are agglomerated; those "
                "of a probability volume are all scored anyway. Try --cells my-cells --thresholds [0.3,0.4,0.5] alone."
            )
        if not self.volume:
            self._check_cells_alone()

    def _check_cells_alone(self) -> None:
        if self.threshold is not None:
            raise ValueError(
                f"threshold={self.threshold} without volume: cells have no threshold, and it would be passed over. "
                "Leave it out, or give --volume."
            )
        if self.labels_are not in (None, "instances"):
            raise ValueError(
                f"labels_are={self.labels_are} without volume: cells are scored against ids, and a mask has none. Give "
                "labels with an id per object, or score the probability with --volume."
            )

    @property
    def label_rule(self) -> LabelRule:
        """How labels become membrane and cell."""
        return LabelRule(self.labels_are or "mask", self.border_px, self.unknown_label)
