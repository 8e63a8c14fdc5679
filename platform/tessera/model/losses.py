"""The training loss, in `keras.ops` only.

It is made of sums over known pixels rather than of means: replicas see different numbers of known pixels, and a mean of
their means is not the mean over all of them. Each replica makes its sums, all of them add theirs up, and both the value
and each replica's share of the gradient follow from the totals.

    replica 0: sums --+                    +--> loss_value(totals): the same on every replica
                      +--> add --> totals -+
    replica 1: sums --+                    +--> loss_share(own sums, totals): its gradients add up to the loss's
"""

from __future__ import annotations

from typing import Any

from keras import ops

from tessera.images.targets import UNKNOWN

TINY = 1e-6


def loss_sums(logits: Any, target: Any, weights: Any) -> Any:
    """All that the loss is made of, to be added up over replicas.

    Args:
      logits: float32, (batch, y, x, 1).
      target: uint8, (batch, y, x): 1 membrane, 0 cell, `UNKNOWN` not annotated.
      weights: float32, (batch, y, x).

    Returns:
      float32, (4,): weighted cross-entropy, known pixels, overlap, mass.
    """
    return ops.stack([*weighted_cross_entropy(logits, target, weights), *soft_dice(logits, target)])


def loss_value(totals: Any, dice: float) -> Any:
    """Cross-entropy per known pixel, plus `dice` x (1 - overlap / mass); a float32 scalar.

    Args:
      totals: `loss_sums` of everything, float32, (4,).
      dice: weight of soft Dice; 0 leaves it out.
    """
    entropy = totals[0] / ops.maximum(totals[1], 1.0)
    return entropy + dice * (1.0 - totals[2] / ops.maximum(totals[3], TINY)) if dice else entropy


def loss_share(sums: Any, totals: Any, dice: float) -> Any:
    """A scalar of one replica's sums, whose gradients, added up over replicas, are those of `loss_value`.

    It is linear in the sums: each is multiplied by the loss's derivative with respect to its total. To differentiate
    `loss_value` through the addition over replicas instead would count every gradient once per replica.

    Args:
      sums: `loss_sums` of this replica.
      totals: the sums of all replicas; no gradient flows through them.
      dice: weight of soft Dice; 0 leaves it out.
    """
    totals = ops.stop_gradient(totals)
    entropy = sums[0] / ops.maximum(totals[1], 1.0)
    if not dice:
        return entropy
    mass = ops.maximum(totals[3], TINY)
    return entropy - dice * (sums[2] / mass - sums[3] * totals[2] / (mass * mass))


def soft_dice(logits: Any, target: Any) -> tuple[Any, Any]:
    """Twice the overlap of predicted and true membrane over known pixels, and the mass of both.

    Args:
      logits: float32, (batch, y, x, 1).
      target: uint8, (batch, y, x): 1 membrane, 0 cell, `UNKNOWN` not annotated.

    Returns:
      Two float32 scalars, 2 sum(p g) and sum(p^2) + sum(g^2): their ratio is the Dice coefficient.

    Source: Milletari, Navab and Ahmadi 2016 (V-Net), section 3; over all pixels of a batch together, because a crop
    without membrane has no Dice coefficient of its own.
    """
    known = ops.cast(ops.not_equal(target, UNKNOWN), "float32")
    positive = ops.cast(ops.equal(target, 1), "float32")
    probability = ops.sigmoid(ops.cast(logits[..., 0], "float32")) * known
    return 2.0 * ops.sum(probability * positive), ops.sum(probability * probability) + ops.sum(positive)


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
