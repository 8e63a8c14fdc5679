"""Settings of `tessera demo`."""

from __future__ import annotations

from dataclasses import dataclass, field

from tessera.images.normalise import Rule
from tessera.images.phantom_options import PhantomOptions
from tessera.settings.common import TrainingTrackingSettings


@dataclass(frozen=True)
class DemoSettings:
    """Run the whole main job on the synthetic volume: train, predict, segment, evaluate.

    Args:
      sections: of the synthetic volume; the last quarter is held out for the score, the quarter before it chooses.
      size: in-plane extent of a section, in pixels.
      steps: training steps.
      phantom: what makes the synthetic volume harder; nothing by default.
      normalisation: as in `tessera train`; per_section suits a volume whose sections drift.
      tracking: where MLflow keeps the runs.
    """

    sections: int = 24
    size: int = 512
    steps: int = 240
    phantom: PhantomOptions = field(default_factory=PhantomOptions)
    normalisation: Rule = "global"
    tracking: TrainingTrackingSettings = field(default_factory=TrainingTrackingSettings)

    def __post_init__(self) -> None:
        if self.sections < 8 or self.size < 256:
            raise ValueError(
                f"sections={self.sections} and size={self.size} leave too little to learn from and score. "
                "Try at least 8 sections of 256 px."
            )
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: without a step nothing is learned. Try 240.")
