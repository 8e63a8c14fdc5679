"""The optimiser, its learning-rate schedule and the averaging of its weights, as a value; imports no Keras."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class OptimiserSpec:
    """The optimiser, its learning-rate schedule and the averaging of its weights.

    Args:
      name: adam, or sgd with Nesterov-free momentum as in the 2015 paper.
      learning_rate: the peak rate, at the global batch size.
      momentum: of sgd (the paper: 0.99); adam ignores it.
      schedule: constant, or cosine decay to zero at the last step.
      warmup_steps: linear rise from zero.
      ema_momentum: per step, of the exponential moving average of the weights, which is then what is validated and
        kept; 0 switches it off, 0.99 to 0.999 remember the last 100 to 1,000 steps.
      ema_norm_batches: the last training batches on which batch normalisation's statistics are measured for the
        averaged weights, at every checkpoint; each costs a third of a step.
    """

    name: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.99
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = 50
    ema_momentum: float = 0.0
    ema_norm_batches: int = 32

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
        if not 0 <= self.ema_momentum < 1:
            raise ValueError(
                f"ema_momentum={self.ema_momentum} must lie in [0, 1): at 1 the average would stay at the initial "
                "weights. Try 0.99, or 0 for no average."
            )
        if self.ema_norm_batches < 1:
            raise ValueError(
                f"ema_norm_batches={self.ema_norm_batches}: without a batch the averaged network would be normalised "
                "with statistics of other weights. Try 32."
            )

    def for_batch(self, batch: int, wanted: int) -> OptimiserSpec:
        """The same optimiser where a step has `batch` samples over all workers instead of the `wanted` ones.

        The peak rate follows the batch: in proportion with sgd, whose step is the mean gradient times the rate (Goyal
        et al. 2017, section 2.1); with its square root with adam, which divides by the gradient's own size, so that the
        noise in a step shrinks with the square root only (Malladi et al. 2022, section 5; Krizhevsky 2014, section 5).
        Momenta, the average's too, and the number of steps stay: batches differ by less than half where the batch is at
        least the number of workers.

        >>> spec = OptimiserSpec("adam", learning_rate=0.1), OptimiserSpec("sgd", learning_rate=0.1)
        >>> [one.for_batch(16, wanted=4).learning_rate for one in spec]
        [0.2, 0.4]
        """
        ratio = batch / wanted
        return replace(self, learning_rate=self.learning_rate * (ratio if self.name == "sgd" else ratio**0.5))

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

    def ema_at(self, step: int) -> float:
        """The average's momentum at one step, counted from 0.

        It rises from 0.1, or a short run would keep its initial weights in the average.

        >>> spec = OptimiserSpec(ema_momentum=0.99)
        >>> spec.ema_at(0), spec.ema_at(80), spec.ema_at(5000)
        (0.1, 0.9, 0.99)

        Source: the warm-up of TensorFlow's ExponentialMovingAverage, min(momentum, (1 + t) / (10 + t)).
        """
        return min(self.ema_momentum, (1 + step) / (10 + step))
