"""The optimiser and its learning-rate schedule, as a value; imports no Keras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class OptimiserSpec:
    """The optimiser and its learning-rate schedule.

    Args:
      name: adam, or sgd with Nesterov-free momentum as in the 2015 paper.
      learning_rate: the peak rate, at the global batch size.
      momentum: of sgd (the paper: 0.99); adam ignores it.
      schedule: constant, or cosine decay to zero at the last step.
      warmup_steps: linear rise from zero.
    """

    name: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.99
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = 50

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(
                f"learning_rate={self.learning_rate} must be positive and finite: weights would not move, or fly off. "
                "Try 1e-3."
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must lie in [0, 1): sgd would diverge. Try 0.99.")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must not be negative. Try 50.")

    def rate_at(self, step: int, steps: int) -> float:
        """The learning rate of one step, counted from 0.

        >>> OptimiserSpec(learning_rate=1.0, warmup_steps=10).rate_at(4, 100)
        0.5
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        return float(self.learning_rate * 0.5 * (1.0 + np.cos(np.pi * min(done, 1.0))))
