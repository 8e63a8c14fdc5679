"""What a training worker does: make samples, take steps, validate whole held-out sections, keep checkpoints.

Validation sections are never augmented and never learned from; they are predicted by overlap-tile as inference does,
and the threshold is chosen on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.images.augment import Anchor, draw_sampling_map, rng_for, sample_crop, sample_on_one_thread
from tessera.images.symmetries import symmetries_of
from tessera.images.targets import CELL, UNKNOWN, KnownPixels, known_pixels
from tessera.images.weights import weights_of_targets
from tessera.metrics.isbi import finish, score_section
from tessera.model.bundle import Contract
from tessera.model.predictor import averaged, predict_middle
from tessera.model.training import DivergedError, FitPlan, Snapshot, fit
from tessera.settings.train import AnnotatedSections, TrainSettings
from tessera.storage.arrays import save_arrays
from tessera.tracking.system import metered
from tessera.workflows.annotated import AnnotatedSet, load_annotated
from tessera.workflows.feed import Feed, position_of
from tessera.workflows.first_batch import MOST_SHOWN, keeping_first
from tessera.workflows.panels import validation_arrays

VALIDATION, CURVE = "validation.npz", "by_threshold.json"


@dataclass(frozen=True)
class Split:
    """Sections learned from, and whole ones held out to choose on; none are held out in a refit."""

    learned: list[AnnotatedSections]
    held_out: list[AnnotatedSections]


def training_loop(config: dict[str, Any]) -> None:
    """What every training worker runs.

    Raises:
      FinalError: the loss is not finite; names the step, its samples and their sections.
    """
    from tessera.engine.samples import sample_batches
    from tessera.engine.train import FinalError, last_checkpoint, rank_and_world, report

    settings, split, contract = config["settings"], config["split"], config["contract"]
    schedule = settings.schedule
    rank, world = rank_and_world()
    batch, seen = schedule.batch_on(world), settings.network.input_sections
    shared = sampling_source(settings, contract, load_annotated(split.learned, settings.data, seen))
    held_out = load_annotated(split.held_out, settings.data, seen) if split.held_out else None

    def stream(first: int, last: int) -> Iterator[Mapping[str, NDArray[Any]]]:
        each = batch // world
        made = sample_batches(make_sample, shared, first=first, last=last, rank=rank, world=world, batch_size=each)
        begins = first == feed.begun.sample == 0
        return fed_first(made, shared, config["first_batch"], range(rank, batch, world), world) if begins else made

    def on_step(line: Mapping[str, float]) -> None:
        epoch = epochs(shared, feed.position(int(line["step"])).sample)
        report(feed.told({**line, "epoch": epoch, **system(), **group}))

    def on_checkpoint(snapshot: Snapshot) -> None:
        position = feed.position(snapshot.step)
        if rank == 0:
            line, save = judged(snapshot, contract, held_out)
            report(feed.told(line), both(save, position.save))
        else:
            report(feed.told({}), position.save)

    plan = FitPlan(schedule.steps, schedule.log_every, schedule.checkpoint_every, settings.seed)
    try:
        watched = settings.tracking.system_metrics and rank == 0
        with last_checkpoint() as resume, metered(on=watched) as system:
            feed = Feed(stream, position_of(resume), schedule.steps, batch, rank, world, schedule.fed_digests)
            group = {"workers": world, "batch": batch} if settings.resources.is_elastic else {}
            fit(
                feed.batches,
                settings.network,
                settings.optimiser.for_batch(batch, schedule.batch),
                plan,
                on_step=on_step,
                on_checkpoint=on_checkpoint,
                dice=settings.loss.dice,
                numerics=settings.numerics,
                start_from=config["start_from"],
                resume=resume,
            )
    except DivergedError as error:
        raise FinalError(f"{error} {samples_of_step(shared, error.step, feed.samples_of(error.step))}") from error


def both(save: Callable[[Path], None], save_more: Callable[[Path], None]) -> Callable[[Path], None]:
    """A function that keeps two things in one checkpoint."""

    def save_both(folder: Path) -> None:
        save(folder)
        save_more(folder)

    return save_both


def judged(
    snapshot: Snapshot, contract: Contract, held_out: AnnotatedSet | None
) -> tuple[dict[str, float], Callable[[Path], None]]:
    """A snapshot's report, and the function that keeps it as a checkpoint, with its threshold and a picture."""
    outcome = validate(snapshot, contract, held_out) if held_out else Validation(contract.threshold, {}, {}, [])
    final = contract.with_training(outcome.threshold, steps=snapshot.step, validation=outcome.scores)

    def save(folder: Path) -> None:
        snapshot.save(folder, final)
        if outcome.arrays:
            save_arrays(folder / VALIDATION, outcome.arrays)
            (folder / CURVE).write_text(json.dumps(outcome.by_threshold))

    return {"step": snapshot.step} | {f"val_{name}": value for name, value in outcome.scores.items()}, save


@dataclass(frozen=True)
class SamplingSource:
    """All that a sample depends on besides its index.

    Attributes:
      images: normalised float32, per section: (y, x), or (y, x, sections) for a 2.5D network.
      names: volume and number, per section, for messages.
      membrane: uint8, (y, x): 1 membrane, 0 cell, 255 unknown.
      weights: float32, (y, x): the border weight map, 0 where unknown.
      settings: the run's.
      input_px: extent of a network input.
      known: the pixels that samples are cut around; None where all are known, and samples are cut anywhere.
    """

    images: tuple[NDArray[np.float32], ...]
    names: tuple[str, ...]
    membrane: tuple[NDArray[np.uint8], ...]
    weights: tuple[NDArray[np.float32], ...]
    settings: TrainSettings
    input_px: int
    known: KnownPixels | None = None


def sampling_source(settings: TrainSettings, contract: Contract, training: AnnotatedSet) -> SamplingSource:
    """Normalise the sections and compute their weight maps, once."""
    return SamplingSource(
        images=tuple(_image(contract.normalisation.apply_to_sections(stack)) for stack in training.stacks),
        names=training.names,
        membrane=training.membrane,
        weights=weights_of_targets(
            training.membrane, settings.loss.w0, settings.loss.sigma_px, settings.loss.class_balance
        ),
        settings=settings,
        input_px=settings.network.input_extent(settings.schedule.crop_px),
        known=known_pixels(training.membrane),
    )


def _image(stack: NDArray[np.float32]) -> NDArray[np.float32]:
    """One section as it is, several as channels: (sections, y, x) to (y, x) or (y, x, sections)."""
    return stack[0] if len(stack) == 1 else np.ascontiguousarray(np.moveaxis(stack, 0, -1))


def make_sample(source: SamplingSource, index: int) -> dict[str, NDArray[Any]]:
    """The training sample of one global index: a pure function of seed and index."""
    sample_on_one_thread()
    rng, section, anchor = _drawn(source, index)
    margin = _margin(source)
    image, target, weights = sample_crop(
        rng,
        source.images[section],
        source.membrane[section],
        source.weights[section],
        (source.input_px, source.input_px),
        source.settings.augmentation,
        margin,
        anchor,
    )
    scored = slice(margin, source.input_px - margin)
    return {"image": image, "target": target[scored, scored], "weights": weights[scored, scored]}


def _margin(source: SamplingSource) -> int:
    """Pixels on each side of a sample that are context alone."""
    return (source.input_px - source.settings.schedule.crop_px) // 2


def _drawn(source: SamplingSource, index: int) -> tuple[np.random.Generator, int, Anchor | None]:
    """The generator of one sample, and the section that it drew first.

    Where little is annotated, most crops cut anywhere would hold nothing to learn from: there a known pixel is drawn,
    each with the same chance, and the crop is cut around it.
    """
    rng = rng_for(source.settings.seed, index)
    if source.known is None:
        return rng, int(rng.integers(len(source.images))), None
    section, (y, x) = source.known.draw(rng)
    return rng, section, Anchor(y, x, source.settings.schedule.crop_px / sqrt(2))


def sampling_map_of(source: SamplingSource, index: int) -> NDArray[np.float32]:
    """Where each pixel of a sample was read in its section, drawn as `make_sample` draws it; float32, (2, y, x)."""
    rng, section, anchor = _drawn(source, index)
    height, width = source.membrane[section].shape
    crop = (source.input_px, source.input_px)
    return draw_sampling_map(rng, (height, width), crop, source.settings.augmentation, _margin(source), anchor)


def fed_first(
    batches: Iterable[Mapping[str, NDArray[Any]]], source: SamplingSource, folder: Path, indices: range, world: int
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """A rank's batches from step 0 on, the first, of samples `indices`, kept for the picture of what was fed."""
    shown = indices[: -(-MOST_SHOWN // world)]
    maps = [sampling_map_of(source, index) for index in shown]
    titles = [f"{source.names[_drawn(source, index)[1]]}, sample {index}" for index in shown]
    return keeping_first(batches, folder, maps, titles, f"{indices.start}-of-{world}")


def epochs(source: SamplingSource, samples: int) -> float:
    """How often as many pixels were scored in these samples as the sections learned from hold.

    Samples are drawn with replacement and no pass over the sections ever ends, so steps count, and this only compares
    runs of other batches and crops.
    """
    return samples * source.settings.schedule.crop_px**2 / sum(section.size for section in source.membrane)


def samples_of_step(source: SamplingSource, step: int, indices: Sequence[int]) -> str:
    """A sentence: which samples a step was fed on all workers together, and the section that each was cut from."""
    of_section: dict[str, list[int]] = {}
    for index in indices:
        of_section.setdefault(source.names[_drawn(source, index)[1]], []).append(index)
    cut = "; ".join(f"{', '.join(map(str, found))} from {name}" for name, found in sorted(of_section.items()))
    return f"Step {step} was fed samples {indices[0]} to {indices[-1]}: {cut}."


@dataclass(frozen=True)
class Validation:
    """What held-out sections say of a snapshot: a threshold, its scores, sections to look at, scores by threshold."""

    threshold: float | None
    scores: dict[str, float]
    arrays: dict[str, NDArray[Any]]
    by_threshold: list[dict[str, float]]


def validate(snapshot: Snapshot, contract: Contract, validation: AnnotatedSet) -> Validation:
    """Score the known pixels of held-out sections, predicted whole as inference does, and keep some for a picture."""
    predict = averaged(snapshot.predict(), symmetries_of(contract.symmetries))
    probabilities = [predict_middle(predict, stack, contract) for stack in validation.stacks]
    scores = finish(
        [
            score_section(1.0 - probability, membrane == CELL, known=membrane != UNKNOWN)
            for probability, membrane in zip(probabilities, validation.membrane, strict=True)
        ]
    )
    frozen = scores.robust_threshold
    told = {"threshold": frozen, "v_rand_frozen": scores.at(frozen)["v_rand"]}
    arrays = validation_arrays(validation, probabilities)
    return Validation(frozen, scores.best() | told, arrays, scores.to_dict()["rows"])
