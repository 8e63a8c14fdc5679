"""Settings of `tessera evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.images.targets import UnknownLabel
from tessera.settings.common import StorageSettings, TrackingSettings, check_unknown_label


@dataclass(frozen=True)
class EvaluateSettings:
    """Score membrane probability against ground truth with the ISBI 2012 metrics.

    Args:
      volume: the probability volume that `tessera predict` wrote: a name, a path or a URL.
      labels: the ground truth, of the same shape: 0 is membrane, any other value is cell.
      sections: which sections to score, such as 24-29; null takes all valid ones.
      threshold: the frozen threshold whose scores come first; null takes the one chosen in training.
      invert_labels: true where the labels say 0 for cell and anything else for membrane.
      unknown_label: the labels' value for pixels that nobody annotated, which are not scored: a number, or largest for
        the greatest of the labels' type, as in CREMI; null where all is annotated.
      cells: the label volume that `tessera segment` wrote, to be shown beside the truth in the run's pictures.
      tracking: where MLflow keeps the run.
      storage: how volumes in object stores are reached.
    """

    volume: str = ""
    labels: str = ""
    sections: str | None = None
    threshold: float | None = None
    invert_labels: bool = False
    unknown_label: UnknownLabel = None
    cells: str | None = None
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)

    def __post_init__(self) -> None:
        for name, example in (("volume", "my-membranes"), ("labels", "my-labels")):
            if not getattr(self, name):
                raise ValueError(f"{name} is not given. Try --{name} {example}.")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} is no probability below 1. Try 0.5.")
        check_unknown_label("unknown_label", self.unknown_label)
