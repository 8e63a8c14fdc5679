"""From a bundle to `predict: array -> array`, and from that to the probability of any box.

The predictor always runs the valid graph, whatever padding training used: every output voxel has seen real context,
or the mirror beyond a true edge (overlap-tile: Ronneberger, Fischer and Brox 2015, section 2 and figure 2).

Averaging over symmetries happens tile by tile, inside `predict`, and is as exact as one pass: pooling windows start
`phase` pixels into a legal input and end as many before its end, so that a flipped or turned input pools the very
windows of the upright one, on the grid anchored at voxel 0 of the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.arithmetic import Arithmetic
from tessera.geometry.boxes import Box
from tessera.geometry.tiles import Tile, shared_context, tiles_of
from tessera.images.levels import LevelTable, levels_of_sections
from tessera.images.mirror import read_mirrored
from tessera.images.neighbours import with_neighbours
from tessera.images.normalise import Normalisation
from tessera.images.symmetries import Symmetry, SymmetryCount, check_square, symmetries_of
from tessera.model.bundle import Contract, load_contract, load_model
from tessera.model.memory import telling_of_memory
from tessera.model.numerics import switch_off_tf32
from tessera.model.spec import UnetSpec

Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""(batch, y, x, sections) normalised float32 in; (batch, y - 2 margin, x - 2 margin, 1) membrane probability out."""
Read = Callable[[Box], NDArray[Any]]


def valid_predict(model: Any, spec: UnetSpec) -> Predict:
    """`predict` around a trained Keras graph: its valid twin, the sigmoid outside the graph, float32."""
    from tessera.model.unet import valid_twin

    switch_off_tf32()
    twin = valid_twin(model, spec)
    # XLA costs a compilation for each tile shape and is the slower engine on CPUs: 0.37 s against 0.30 s a tile.
    twin.compile(jit_compile=False)

    def predict(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = np.asarray(twin.predict_on_batch(tiles), np.float32)
        return sigmoid(logits)

    return predict


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logistic function, in float32, without overflow for any finite logit.

    >>> float(sigmoid(np.float32([-1000.0]))[0])
    0.0
    """
    decay = np.exp(-np.abs(logits))
    probability = np.where(logits >= 0, np.float32(1), decay) / (np.float32(1) + decay)
    return probability.astype(np.float32, copy=False)


def averaged(predict: Predict, symmetries: Sequence[Symmetry]) -> Predict:
    """`predict` averaged over `symmetries`: the mean of what it gives for each orientation, laid back upright.

    One pass follows the other into a running sum, so the number of symmetries costs time, not memory: two outputs are
    held at once. The mean is taken of probabilities, not of logits: one orientation that is sure and wrong then
    cannot outvote the others.

    Args:
      predict: see `Predict`; for turns by 90 degrees its arithmetic must be the same along y and x, as `UnetSpec`'s is.
      symmetries: at least one. For 1, `predict` itself comes back where that is the identity.

    Raises:
      ValueError: there is no symmetry to average over.
    """
    if not symmetries:
        raise ValueError("symmetries is empty: there is nothing to average. Give at least the identity.")
    if tuple(symmetries) == symmetries_of(1):
        return predict

    def predict_averaged(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        first, *others = symmetries
        total = np.array(first.invert(predict(first.apply(tiles))), np.float32)
        for symmetry in others:
            total += symmetry.invert(predict(symmetry.apply(tiles)))
        total /= len(symmetries)
        return total

    return predict_averaged


def load_predictor(
    folder: Path, symmetries: SymmetryCount | None = None, digest: str | None = None
) -> tuple[Predict, Contract]:
    """The predictor and contract of a bundle.

    Args:
      folder: the bundle.
      symmetries: how many to average over; None takes the contract's.
      digest: of the bundle that is meant, where it must be that one.

    Raises:
      FileNotFoundError, ValueError: the folder is not a bundle, or a damaged one; or turns do not fit its voxel size.
    """
    contract = load_contract(folder)
    count = contract.symmetries if symmetries is None else symmetries
    check_square(count, contract.voxel_size_nm)
    predict = telling_of_memory(valid_predict(load_model(folder, digest), contract.network))
    return averaged(predict, symmetries_of(count)), contract


def predict_box(
    predict: Predict,
    read: Read,
    shape: Sequence[int],
    core: Box,
    tile: Sequence[int],
    contract: Contract,
    levels: LevelTable | None = None,
    missing: Collection[int] = (),
    wanted: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Membrane probability of a box, tile by tile.

    Args:
      predict: see `Predict`.
      read: gives the raw voxels of a box inside the volume.
      shape: the volume's, z, y, x; beyond it the context is mirrored.
      core: the voxels wanted, in the volume's coordinates.
      tile: the most useful voxels per pass, z, y, x. Any value gives the same probabilities within 1e-5.
      contract: the model's: normalisation and arithmetic.
      levels: for a `per_section` contract, grey levels of the sections of `core` and of its halo on z. Others that
        are read along with a tile come out as 0; they yield no voxel of `core`.
      missing: sections that hold nothing: a 2.5D network is not shown them, see `neighbour_positions`.
      wanted: bool, of `core`'s shape: a tile without one such voxel is neither read nor predicted; None wants all.

    Returns:
      float32, of `core`'s shape, in [0, 1]; 0 in tiles that are not wanted.

    Raises:
      ValueError: the contract's rule needs levels and there are none, or the other way round, or a section of `core`
        or of that halo is not among them.
    """
    arithmetic, channels = contract.network.arithmetic, contract.network.input_sections
    pieces = [piece for piece in tiles_of(core, tile, arithmetic) if _is_wanted(piece, core, wanted)]
    probability = np.zeros(core.shape, np.float32)
    if not pieces:
        return probability
    context = shared_context(pieces, arithmetic)
    seen = core.grown(arithmetic.halo).clipped(Box.whole(shape))
    image = read_mirrored(_normalising(read, contract.normalisation, seen, levels), tuple(shape), context)
    for piece in pieces:
        needed = arithmetic.input_box(piece.useful)
        voxels = image[needed.relative_to(context.start).slices]
        valid = predict(with_neighbours(voxels, needed.start[0], channels, shape[0], missing))[..., 0]
        useful = valid[_uncropped(arithmetic, valid.shape)]
        kept = useful[piece.keep.relative_to(piece.useful.start).slices]
        probability[piece.keep.relative_to(core.start).slices] = kept
    return probability


def _is_wanted(piece: Tile, core: Box, wanted: NDArray[np.bool_] | None) -> bool:
    return wanted is None or bool(wanted[piece.keep.relative_to(core.start).slices].any())


def _normalising(read: Read, rule: Normalisation, seen: Box, levels: LevelTable | None) -> Read:
    """`read`, with each section normalised by its own levels: what is mirrored later keeps those of its section."""
    if levels is None:
        return lambda box: rule.apply(read(box))
    unknown = [z for z in range(seen.start[0], seen.stop[0]) if z not in levels]
    if unknown:
        raise ValueError(
            f"sections {unknown} of {seen} have no entry in the table of grey levels: they would be predicted as flat "
            "grey. Measure the levels of every section that is predicted."
        )
    return lambda box: rule.apply(read(box), [levels.get(z) for z in range(box.start[0], box.stop[0])])


def _uncropped(arithmetic: Arithmetic, shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(crop, extent - crop) for crop, extent in zip(arithmetic.crop, shape, strict=True))


def predict_volume(predict: Predict, volume: NDArray[Any], contract: Contract) -> NDArray[np.float32]:
    """Membrane probability of an array in memory, each section in one pass: the oracle of tilings.

    Args:
      predict: see `Predict`.
      volume: raw, (z, y, x), of whole sections: under `per_section` their levels are measured here. A 2.5D network sees
        the first and last of them as a volume's, mirrored.
      contract: the model's.
    """
    return _predict_sections(predict, volume, contract, Box.whole(volume.shape))


def predict_middle(predict: Predict, stack: NDArray[Any], contract: Contract) -> NDArray[np.float32]:
    """Membrane probability of one section in its context, in one pass: validation.

    Args:
      predict: see `Predict`.
      stack: raw, (sections, y, x): whole sections, as many as the contract's network sees; the middle one is predicted.
      contract: the model's.

    Returns:
      float32, (y, x), in [0, 1].

    Raises:
      ValueError: the stack has another number of sections.
    """
    depth, wanted = len(stack), contract.network.input_sections
    if depth != wanted:
        raise ValueError(
            f"a stack of {depth} sections was given to a network that sees {wanted}: its neighbours would be made up "
            f"or left out. Give {wanted} sections, the one to predict in the middle."
        )
    middle = Box((depth // 2, 0, 0), (depth // 2 + 1, *stack.shape[1:]))
    probability: NDArray[np.float32] = _predict_sections(predict, stack, contract, middle)[0]
    return probability


def _predict_sections(predict: Predict, volume: NDArray[Any], contract: Contract, core: Box) -> NDArray[np.float32]:
    tile = (1, *volume.shape[1:])
    period = contract.network.arithmetic.period
    whole = tuple(-(-n // p) * p for n, p in zip(tile, period, strict=True))
    levels = dict(enumerate(levels_of_sections(volume))) if contract.normalisation.needs_levels else None
    return predict_box(predict, lambda box: volume[box.slices], volume.shape, core, whole, contract, levels)
