"""The loss as summable statistics: oracles in NumPy, and shards of a batch that add up to the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tessera.model.losses import UNKNOWN, loss_share, loss_sums, loss_value, soft_dice

SHAPE = (6, 5, 7)
DICE = 0.7


@pytest.fixture
def batch() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(3)
    target = rng.choice(np.array([0, 1, UNKNOWN], np.uint8), SHAPE)
    target[2] = UNKNOWN  # shards differ in known pixels
    return {
        "logits": (3 * rng.standard_normal((*SHAPE, 1))).astype(np.float32),
        "target": target,
        "weights": (1 + 9 * rng.random(SHAPE)).astype(np.float32),
    }


def _by_hand(batch: dict[str, NDArray[Any]], dice: float) -> float:
    known = batch["target"] != UNKNOWN
    p = 1 / (1 + np.exp(-batch["logits"][..., 0].astype(np.float64)))[known]
    g = (batch["target"] == 1)[known]
    entropy = -np.log(np.where(g, p, 1 - p)) * batch["weights"][known]
    coefficient = 2 * (p * g).sum() / ((p**2).sum() + (g**2).sum())
    return float(entropy.sum() / known.sum() + dice * (1 - coefficient))


def _shards(batch: dict[str, NDArray[Any]], count: int) -> list[dict[str, NDArray[Any]]]:
    return [{name: array[rank::count] for name, array in batch.items()} for rank in range(count)]


@pytest.mark.parametrize("dice", [0.0, DICE])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_loss_of_all_shards_is_that_of_known_pixels_together(
    batch: dict[str, NDArray[Any]], count: int, dice: float
) -> None:
    totals = sum(np.asarray(loss_sums(**shard)) for shard in _shards(batch, count))
    assert float(loss_value(totals, dice)) == pytest.approx(_by_hand(batch, dice), rel=1e-5)


@pytest.mark.parametrize("dice", [0.0, DICE])
@pytest.mark.parametrize("count", [1, 3])
def test_the_shards_gradients_are_those_of_the_whole_loss(
    batch: dict[str, NDArray[Any]], count: int, dice: float
) -> None:
    """Against central differences of the oracle in float64."""
    import tensorflow as tf

    totals = sum(np.asarray(loss_sums(**shard)) for shard in _shards(batch, count))
    gradient = np.zeros((*SHAPE, 1))
    for rank, shard in enumerate(_shards(batch, count)):
        logits = tf.constant(shard["logits"])
        with tf.GradientTape() as tape:
            tape.watch(logits)
            share = loss_share(loss_sums(logits, shard["target"], shard["weights"]), totals, dice)
        gradient[rank::count] = tape.gradient(share, logits).numpy()
    for pixel in [(0, 0, 0), (1, 2, 3), (2, 1, 1), (5, 4, 6), *np.argwhere(batch["target"] == 1)[:3]]:
        ends = []
        for sign in (1, -1):
            moved = batch["logits"].astype(np.float64)
            moved[(*pixel, 0)] += sign * 1e-4
            ends.append(_by_hand({**batch, "logits": moved}, dice))
        assert gradient[(*pixel, 0)] == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-3, abs=1e-7)


def test_perfect_overlap_has_no_dice_loss_and_none_has_all_of_it(batch: dict[str, NDArray[Any]]) -> None:
    sure = np.where(batch["target"] == 1, 50, -50)[..., np.newaxis].astype(np.float32)
    for logits, expected in ((sure, 1.0), (-sure, 0.0)):
        overlap, mass = soft_dice(logits, batch["target"])
        assert float(overlap) / float(mass) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("dice", [0.0, DICE])
def test_a_batch_that_nobody_annotated_has_a_finite_loss_and_no_gradient(dice: float) -> None:
    import tensorflow as tf

    logits = tf.constant(np.ones((*SHAPE, 1), np.float32))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        sums = loss_sums(logits, np.full(SHAPE, UNKNOWN, np.uint8), np.ones(SHAPE, np.float32))
        share = loss_share(sums, sums, dice)
    assert float(loss_value(sums, dice)) == pytest.approx(dice)
    assert not tape.gradient(share, logits).numpy().any()


@pytest.mark.parametrize("dice", [0.0, DICE])
def test_nothing_under_unknown_pixels_reaches_loss_or_gradients(batch: dict[str, NDArray[Any]], dice: float) -> None:
    import tensorflow as tf

    unknown = batch["target"] == UNKNOWN
    other = {**batch, "weights": np.where(unknown, np.float32(77), batch["weights"]), "logits": batch["logits"].copy()}
    other["logits"][unknown] = 5
    found = []
    for one in (batch, other):
        logits = tf.Variable(one["logits"])
        with tf.GradientTape() as tape:
            loss = loss_value(loss_sums(logits, one["target"], one["weights"]), dice)
        found.append((float(loss), np.asarray(tape.gradient(loss, logits))))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5, atol=1e-9)
    assert not found[1][1][unknown].any() and found[1][1][~unknown].all()
