"""What makes the phantom harder: each option off by default, so that the frozen instrument stays what it is."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True)
class PhantomOptions:
    """What a phantom shows besides neurites and their membranes.

    Organelles change grey values alone, never labels. A fold moves raw and labels together, and hides what is under
    its band; a tear hides what it took away and leaves the labels as they would have been. `PhantomBlock.unknown` marks
    what is hidden.

    Args:
      mitochondria: dark-walled, striped ellipsoids inside cells, through several sections.
      vesicles: clusters of small dark rings inside some cells.
      tears: chance that a field of 512 x 512 px of a section is torn: a slit of bright resin.
      folds: chance that such a field is folded: a dark band, with tissue pulled towards it from both sides.
      drift: how far brightness and contrast wander from section to section; 1 is as much as one normalisation for all
        sections can hardly serve.
    """

    mitochondria: bool = False
    vesicles: bool = False
    tears: float = 0.0
    folds: float = 0.0
    drift: float = 0.0

    def __post_init__(self) -> None:
        for name in ("tears", "folds"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} is no chance from 0 to 1: a field of a section is damaged once or "
                    f"not at all. Try {name}=0.05."
                )
        if not (isfinite(self.drift) and 0 <= self.drift <= 2):
            raise ValueError(
                f"drift={self.drift} must lie in [0, 2]: beyond, sections would be black or white, and nothing could "
                "bring them back. Try drift=1."
            )


PLAIN = PhantomOptions()
"""The frozen instrument."""

HARDER = PhantomOptions(mitochondria=True, vesicles=True, tears=0.05, folds=0.05, drift=1.0)
"""Everything at once, as often as in a volume of fair quality."""
