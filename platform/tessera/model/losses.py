"""The training loss, in `keras.ops` only.

It returns a sum and a count rather than a mean: replicas see different numbers of known pixels, and a mean of their
means is not the mean over all of them.
"""

from __future__ import annotations

from typing import Any

from keras import ops

UNKNOWN = 255
"""The target value of a pixel that nobody annotated: it carries no loss."""


def weighted_cross_entropy(logits: Any, target: Any, weights: Any) -> tuple[Any, Any]:
    """Sum of weight x cross-entropy over known pixels, and how many there are.

    Args:
      logits: float32, (batch, y, x, 1).
      target: uint8, (batch, y, x): 1 membrane, 0 cell, `UNKNOWN` not annotated.
      weights: float32, (batch, y, x).

    Returns:
      Two float32 scalars: the weighted sum and the number of known pixels.

    Source: Ronneberger, Fischer and Brox 2015, equation 1, for one sigmoid channel.
    """
    known = ops.cast(ops.not_equal(target, UNKNOWN), "float32")
    positive = ops.cast(ops.equal(target, 1), "float32")
    logits = ops.cast(logits[..., 0], "float32")
    # max(l, 0) - l t + log(1 + exp(-|l|)): neither exp nor log can overflow.
    entropy = ops.relu(logits) - logits * positive + ops.log1p(ops.exp(-ops.abs(logits)))
    return ops.sum(entropy * weights * known), ops.sum(known)
