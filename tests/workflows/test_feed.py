"""What steps are fed: nothing skipped, nothing twice, and the same whoever makes it, shares it or dies on the way."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.engine.samples import sample_batches
from tessera.engine.train import TrainGroup, last_checkpoint, rank_and_world, report, run_group
from tessera.images.augment import Augmentation
from tessera.settings.train import ScheduleSettings, TrainSettings
from tessera.workflows.feed import FED, Feed, Position, batch_digest, merged, position_of, recording, sample_digest
from tessera.workflows.training_loop import SamplingSource, make_sample

STEPS, BATCH = 8, 4


def _numbers(batch: int, rank: int, world: int, first: int, last: int) -> Iterator[dict[str, Any]]:
    """A stream whose samples are their own indices."""
    mine = range(first + rank, last, world)
    for i in range(0, len(mine) - batch // world + 1, batch // world):
        yield {"image": np.array(mine[i : i + batch // world])}


def _feed(begun: Position, steps: int, batch: int, rank: int = 0, world: int = 1) -> Feed:
    return Feed(partial(_numbers, batch, rank, world), begun, steps, batch, rank, world)


def _indices(feed: Feed, first_step: int, count: int | None = None) -> list[list[int]]:
    return [batch["image"].tolist() for batch in islice(feed.batches(first_step), count)]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4), st.integers(1, 7))
def test_resizing_neither_skips_a_sample_nor_feeds_one_twice(stages: list[tuple[int, int]], wanted: int) -> None:
    """Each stage is a number of workers and how many steps it takes until its last checkpoint."""
    schedule, position, fed = ScheduleSettings(batch=wanted), Position(), []
    steps = sum(taken for _, taken in stages) + 2
    for workers, taken in stages:
        batch = schedule.batch_on(workers)
        feeds = [_feed(position, steps, batch, rank, workers) for rank in range(workers)]
        for batches in zip(*(_indices(feed, position.step, taken) for feed in feeds), strict=True):
            fed += sorted(index for part in batches for index in part)
        position = feeds[0].position(position.step + taken)
    assert fed == list(range(len(fed))) and position.sample == len(fed)


def test_a_position_survives_in_a_checkpoint(tmp_path: Path) -> None:
    assert position_of(None) == Position(0, 0)
    Position(7, 26).save(tmp_path)
    assert position_of(tmp_path) == Position(7, 26)


def test_a_look_back_sees_the_samples_of_the_steps_before(tmp_path: Path) -> None:
    assert _indices(_feed(Position(3, 12), 5, 4), 1) == [
        [4, 5, 6, 7],
        [8, 9, 10, 11],
        [12, 13, 14, 15],
        [16, 17, 18, 19],
    ]


def test_a_look_back_past_smaller_batches_still_goes_on_at_the_right_sample() -> None:
    assert _indices(_feed(Position(2, 6), 3, 4), 0) == [[0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9]]


def test_only_what_is_trained_on_is_told_and_only_once() -> None:
    feed = _feed(Position(2, 8), 4, 4)
    assert len(_indices(feed, 1)) == 3
    assert [row[:3] for row in feed.told({"step": 4})[FED]] == [[2, 8, 4], [3, 12, 4]]
    assert feed.told({"step": 4}) == {"step": 4, FED: []}


# Digests


@pytest.mark.parametrize(
    "other",
    [
        {"image": np.zeros((2, 3), np.float32), "target": np.ones((2, 3), np.uint8)},
        {"image": np.zeros((3, 2), np.float32), "target": np.zeros((2, 3), np.uint8)},
        {"image": np.zeros((2, 3), np.int32), "target": np.zeros((2, 3), np.uint8)},
        {"target": np.zeros((2, 3), np.float32), "image": np.zeros((2, 3), np.uint8)},
        {"image": np.full((2, 3), -0.0, np.float32), "target": np.zeros((2, 3), np.uint8)},
    ],
)
def test_a_digest_sees_each_bit_shape_type_and_name(other: dict[str, Any]) -> None:
    one = {"image": np.zeros((2, 3), np.float32), "target": np.zeros((2, 3), np.uint8)}
    assert sample_digest(3, one) == sample_digest(3, dict(reversed(one.items())))
    assert sample_digest(3, one) != sample_digest(3, other)
    assert sample_digest(3, one) != sample_digest(4, one)


@given(st.integers(1, 4), st.integers(1, 5))
def test_digests_of_shares_add_up_to_that_of_the_batch(world: int, each: int) -> None:
    samples = [{"image": np.array([0.1 * i])} for i in range(world * each)]
    parts = [batch_digest(range(r, len(samples), world), samples[r::world]) for r in range(world)]
    (row,) = merged([{FED: [[0, 0, len(samples), part]]} for part in parts])[FED]
    assert row[3] == batch_digest(range(len(samples)), samples)


def test_workers_that_were_fed_different_steps_are_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"workers were fed different steps.*cannot be added up"):
        merged([{FED: [[0, 0, 4, 1]]}, {FED: [[1, 4, 4, 1]]}])


# On Ray Train and Ray Data


def _source() -> SamplingSource:
    rng = np.random.default_rng(3)
    images = tuple(rng.random((48, 48), np.float32) for _ in range(3))
    membrane = tuple((image > 0.5).astype(np.uint8) for image in images)
    augmentation = Augmentation(elastic_sigma_px=2.0, flips=True, contrast=0.1, noise_sigma=0.05)
    settings = TrainSettings(augmentation=augmentation, schedule=ScheduleSettings(batch=BATCH, crop_px=24))
    return SamplingSource(images, ("a", "b", "c"), membrane, images, settings, input_px=24)


def _feed_of(source: SamplingSource, begun: Position, rank: int = 0, world: int = 1) -> Feed:
    batch = source.settings.schedule.batch_on(world)

    def stream(first: int, last: int) -> Iterator[Any]:
        place = {"rank": rank, "world": world, "batch_size": batch // world}
        return sample_batches(make_sample, source, first=first, last=last, rows_per_task=2, **place)

    return Feed(stream, begun, STEPS, batch, rank, world)


def _fed_and_nothing_else(config: dict[str, Any]) -> None:
    """A training loop without a network: it takes its batches, and a checkpoint every 3 steps."""
    rank, world = rank_and_world()
    with last_checkpoint() as resume:
        begun = position_of(resume)
    feed = _feed_of(config["source"], begun, rank, world)
    for step, _ in enumerate(feed.batches(begun.step), begun.step):
        report(feed.told({"step": step + 1}), feed.position(step + 1).save if (step + 1) % 3 == 2 else None)
        if step == config["dies_at"] and begun.step == 0:
            _die_once_heard(config["digests"], step)


def _die_once_heard(digests: Path, step: int) -> None:
    """What a worker reports in its last second may die with it: the test wants it to be heard."""
    while f'"step": {step},' not in digests.read_text():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def _fed(folder: Path, workers: int, cpus_per_worker: float, dies_at: int | None = None) -> list[list[int]]:
    folder.mkdir()
    group = TrainGroup("fed", folder, workers, cpus_per_worker, max_failures=1)
    digests = folder / "fed.jsonl"
    digests.touch()
    hear = recording(digests, lambda metrics, checkpoint: None)
    config = {"source": _source(), "dies_at": dies_at, "digests": digests}
    run_group(_fed_and_nothing_else, config, group, hear, merged)
    lines = [json.loads(line) for line in digests.read_text().splitlines()]
    return [[line["step"], line["first_sample"], line["samples"], int(line["digest"], 16)] for line in lines]


@pytest.mark.slow
def test_steps_are_fed_the_same_by_any_workers_and_after_a_restart(ray_session: None, tmp_path: Path) -> None:
    """Of the session's 4 CPUs, those that no training worker reserves carry one Data worker each."""
    four_data_workers = _feed_of(_source(), Position())
    assert len(list(four_data_workers.batches(0))) == STEPS
    undisturbed = four_data_workers.told({})[FED]
    assert [row[:3] for row in undisturbed] == [[step, step * BATCH, BATCH] for step in range(STEPS)]
    assert [row[3] for row in undisturbed] == _made_alone()

    # Three CPUs to the training worker leave one Data worker.
    restarted = _fed(tmp_path / "restarted", workers=1, cpus_per_worker=3.0, dies_at=3)
    assert restarted == [*undisturbed[:4], *undisturbed[2:]], "steps 2 and 3 came after the last checkpoint"

    assert _fed(tmp_path / "two", workers=2, cpus_per_worker=0.5) == undisturbed


def _made_alone() -> list[int]:
    """The digest of each step's samples, made here without Ray."""
    source = _source()
    steps = [range(step * BATCH, (step + 1) * BATCH) for step in range(STEPS)]
    return [batch_digest(indices, [make_sample(source, i) for i in indices]) for indices in steps]
