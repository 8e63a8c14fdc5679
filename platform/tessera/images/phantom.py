r"""A synthetic EM volume of any size, in which the truth is known at every voxel.

The real annotated stack is thirty sections of 512x512: too small to cross a block's face, and nothing terabyte-sized is
annotated at all. The phantom fills both gaps. It measures others, so it is an instrument: its constants are frozen (a
test pins a digest), and every block of it can be made alone, bit-equal to the same block of the whole.

How a voxel gets its value:

1. *Neurites* (neurites.py). Bent, branching columns of varied size, each one neuron that wanders along z and ends.
2. *Membrane* is what lies near the face between two neurons; wider where the face is oblique to the section.
3. *Grey values.* Bright cytoplasm with its neuron's tone, cloudy stain, and grains as dark as a membrane; a dark
   membrane, smeared through the section's thickness; then the section's own contrast, and shot noise.

    section z     |  neuron A    ||      neuron B    an upright face: narrow and dark
    section z+1   |  neuron A     \\\\   neuron B    an oblique one: wide and faint

Not part of it: mitochondria, vesicles, tears, folds and drift (options, off in the instrument), missing sections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.images.hashing import bell, hash_at, stream, value_noise, white_noise
from tessera.images.neurites import FARTHEST, VOXEL_SIZE_NM, Faces, Field, find_faces
from tessera.images.phantom_damage import FARTHEST_PX, FOLD_LIGHT, Fold, drift_of, fold_of, tear_of
from tessera.images.phantom_options import PLAIN, PhantomOptions
from tessera.images.phantom_organelles import vesicle_darkness, with_mitochondria

__all__ = ["VOXEL_SIZE_NM", "Phantom", "PhantomBlock"]

# ---- Frozen, with those of neurites.py: what was scored on other constants was scored on another instrument. ----

MEMBRANE_HALF_NM = 13.5
"""Half the width of a membrane between two neurons."""

MEMBRANE_EDGE_NM = 5.0
"""How softly its darkness ends."""

# Grey values, in steps of uint8 before the section's gain and offset; noise as (voxels between nodes, one sigma there).
CYTOPLASM = 152.0
TONE_SIGMA = 5.0
"""How much one neuron's cytoplasm differs from another's."""

MEMBRANE_DEPTH = 82.0
STAIN_WAVELENGTH = (1, 24, 24)
STAIN_SIGMA = 0.15
STAIN_FLOOR = 0.6
"""A membrane takes stain unevenly along its way, but never less than this part of MEMBRANE_DEPTH."""

TEXTURES = (((1, 110, 110), 6.0), ((1, 31, 31), 5.5), ((1, 7, 7), 12.0), ((1, 4, 4), 18.0), ((1, 2, 2), 27.0))
"""Cloudy stain, then granular cytoplasm."""

GRAINS = (((1, 8, 8), 60.0, 0.8), ((1, 5, 5), 50.0, 0.7))
"""Dark grains, 5-10 px, that fool a simple smoothing: (nodes, depth for each sigma above the threshold, threshold)."""

SHOT_SIGMA = 9.0
MIDDLE = 128.0
GAIN_SIGMA = 0.05
OFFSET_SIGMA = 1.5
"""Contrast (about the middle) and brightness drift from section to section: mildly, so that one normalisation does."""

# ---- End of what is frozen. The pieces are a matter of speed alone: no voxel depends on them. ----

_PIECE = (8, 64, 64)


class _Purpose(IntEnum):
    """Which stream of random numbers is for what, from 32 on; each field takes its place in a list on top."""

    TONE = 32
    GAIN = 33
    OFFSET = 34
    STAIN = 35
    SHOT = 36
    GRAIN = 48
    TEXTURE = 64


@dataclass(frozen=True, slots=True)
class PhantomBlock:
    """One block of a phantom; the arrays share the block's shape, (z, y, x).

    Attributes:
      raw: uint8, grey values; membranes are dark.
      membrane: bool, True on membrane.
      instances: uint64, the neuron's id, the same in every block; 0 on membrane.
      unknown: bool, True where a tear or a fold's band hides what the labels say; nowhere without these options.
    """

    raw: NDArray[np.uint8]
    membrane: NDArray[np.bool_]
    instances: NDArray[np.uint64]
    unknown: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Phantom:
    """A synthetic serial-section EM volume without end, known by its seed.

    Two neurons can touch from one section to the next with no membrane voxel between them, as in real sections of
    50 nm: components of the mask are profiles within a section; in 3D `instances` is the truth, and they are not.

    Attributes:
      seed: 0 to 2^64 - 1; another seed is another volume of the same kind.
      options: what makes it harder; by default it is the frozen instrument.

    >>> Phantom().block(Box((0, 0, 0), (1, 2, 3))).raw.shape
    (1, 2, 3)
    """

    seed: int = 2012
    options: PhantomOptions = PLAIN

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise ValueError(
                f"phantom seed={self.seed} does not fit 64 unsigned bits: seeds are hashed, and a wrapped one would be "
                f"another volume's. Try seed={abs(self.seed) % 2**64}."
            )

    def block(self, box: Box) -> PhantomBlock:
        """The voxels of `box`, bit-equal to the same voxels of any larger block.

        Time and the memory of the result grow with the box; working memory does not (some MB).

        Raises:
          ValueError: the box is not of three axes, is empty, starts before voxel 0, or ends past voxel 2^26.
        """
        _check(box)
        shape = box.shape
        block = PhantomBlock(
            np.empty(shape, np.uint8), np.empty(shape, bool), np.empty(shape, np.uint64), np.empty(shape, bool)
        )
        for piece in _pieces(box):
            at = piece.relative_to(box.start).slices
            part = _damaged(piece, self.seed, self.options)
            block.raw[at], block.membrane[at], block.instances[at] = part.raw, part.membrane, part.instances
            block.unknown[at] = part.unknown
        return block


def _check(box: Box) -> None:
    """Refuse what is not a block of the phantom."""
    if box.ndim != 3:
        raise ValueError(f"box {box} has {box.ndim} axes: a phantom is z, y, x. Try Box((0, 0, 0), (16, 512, 512)).")
    if box.size == 0:
        raise ValueError(
            f"box {box} is empty: a block without voxels is a slip in the caller's grid. Try a longer one."
        )
    if min(box.start) < 0 or max(box.stop) > FARTHEST:
        inside = box.clipped(Box.whole((FARTHEST,) * 3))
        raise ValueError(
            f"box {box} leaves the phantom, voxels 0 to 2^26 on each axis: there is nothing outside, and context past "
            f"an edge is for the reader to mirror, as with a stored volume. Try {inside}."
        )


def _pieces(box: Box) -> Iterator[Box]:
    """Small boxes that fill `box`: arrays that stay in the processor's cache."""
    starts = [range(a, b, step) for a, b, step in zip(box.start, box.stop, _PIECE, strict=True)]
    for start in product(*starts):
        yield Box(start, tuple(a + step for a, step in zip(start, _PIECE, strict=True))).clipped(box)


def _damaged(box: Box, seed: int, options: PhantomOptions) -> PhantomBlock:
    """A small block with the folds and tears of its sections; the options that are off cost nothing."""
    fold = fold_of(box, seed, options.folds) if options.folds else None
    block = _render(box, seed, options) if fold is None else _folded(box, seed, options, fold)
    tear = tear_of(box, seed, options.tears) if options.tears else None
    if tear is not None:
        grey, torn = tear
        np.copyto(block.raw, np.clip(np.rint(grey), 0, 255).astype(np.uint8), where=torn)
        np.logical_or(block.unknown, torn, out=block.unknown)
    return block


def _folded(box: Box, seed: int, options: PhantomOptions, fold: Fold) -> PhantomBlock:
    """Raw and labels, moved together as the fold moves tissue; what its band doubles is dark, and hidden."""
    # Folds keep inside their fields, and fields begin at voxel 0: what they show lies inside the phantom.
    around = box.grown((0, FARTHEST_PX, FARTHEST_PX)).clipped(Box.whole((FARTHEST,) * 3))
    flat = _render(around, seed, options)
    shown = np.arange(box.shape[0])[:, None, None], fold.y - around.start[1], fold.x - around.start[2]
    raw = flat.raw[shown]
    dark = np.rint(np.float32(FOLD_LIGHT) * raw.astype(np.float32)).astype(np.uint8)
    return PhantomBlock(np.where(fold.band, dark, raw), flat.membrane[shown], flat.instances[shown], fold.band)


def _render(box: Box, seed: int, options: PhantomOptions) -> PhantomBlock:
    """A small block of undamaged sections, in one go."""
    faces = find_faces(box, seed)
    membrane = faces.distance_nm < _half_width(faces)
    instances = np.where(membrane, np.uint64(0), faces.neuron)
    return PhantomBlock(_grey(box, seed, faces, options), membrane, instances, np.zeros(box.shape, bool))


def _grey(box: Box, seed: int, faces: Faces, options: PhantomOptions) -> NDArray[np.uint8]:
    """What the microscope would show of these neurites: uint8, (z, y, x)."""
    grey = _with_organelles(box, seed, faces, options) - _stain(box, seed) * _profile(faces)
    grey -= np.float32(MIDDLE)
    grey *= 1 + np.float32(GAIN_SIGMA) * _per_section(box, stream(seed, _Purpose.GAIN))
    grey += np.float32(MIDDLE) + np.float32(OFFSET_SIGMA) * _per_section(box, stream(seed, _Purpose.OFFSET))
    grey += np.float32(SHOT_SIGMA) * white_noise(box, stream(seed, _Purpose.SHOT))
    if options.drift:
        # The camera's settings drift, and act on noise and signal alike: what they spread apart, a rule can undo.
        factor, offset = drift_of(box, seed, options.drift)
        grey = (grey - np.float32(MIDDLE)) * factor + np.float32(MIDDLE) + offset
    clipped: NDArray[np.uint8] = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
    return clipped


def _with_organelles(box: Box, seed: int, faces: Faces, options: PhantomOptions) -> Field:
    """The grey of a neurite's inside, with what lies in it: float32, (z, y, x)."""
    grey = _cytoplasm(box, seed, faces)
    # Vesicles do not show through a mitochondrion.
    dark = vesicle_darkness(box, seed, faces) if options.vesicles else None
    if options.mitochondria:
        grey, cover = with_mitochondria(grey, CYTOPLASM, box, seed, faces)
        dark = None if dark is None else dark * (1 - cover)
    return grey if dark is None else grey - dark


def _cytoplasm(box: Box, seed: int, faces: Faces) -> Field:
    """The grey of a neurite's inside, before the section's contrast: float32, (z, y, x)."""
    tone = bell(hash_at(stream(seed, _Purpose.TONE), faces.neuron.astype(np.int64)))
    grey: Field = np.float32(CYTOPLASM) + np.float32(TONE_SIGMA) * tone
    for k, (wavelength, sigma) in enumerate(TEXTURES):
        grey += np.float32(sigma) * value_noise(box, wavelength, stream(seed, _Purpose.TEXTURE + k))
    for k, (wavelength, depth, above) in enumerate(GRAINS):
        noise = value_noise(box, wavelength, stream(seed, _Purpose.GRAIN + k))
        grey -= np.float32(depth) * np.maximum(noise - np.float32(above), 0)
    return grey


def _per_section(box: Box, key: NDArray[np.uint64]) -> Field:
    """One nearly normal number per section, (z, 1, 1)."""
    return bell(hash_at(key, np.arange(box.start[0], box.stop[0])))[:, None, None]


def _stain(box: Box, seed: int) -> Field:
    """How dark a membrane is here: it takes stain unevenly, but never less than STAIN_FLOOR of it."""
    noise = value_noise(box, STAIN_WAVELENGTH, stream(seed, _Purpose.STAIN))
    taken: Field = np.maximum(1 + np.float32(STAIN_SIGMA) * noise, np.float32(STAIN_FLOOR))
    return np.float32(MEMBRANE_DEPTH) * taken


def _profile(faces: Faces) -> Field:
    """Darkness of the membrane, 1 in an upright one: what a face loses to obliqueness in depth it gains in width.

    A plateau with soft edges, u / sqrt(1 + u^2) each: only products and roots, which round alike everywhere.
    """
    half = _half_width(faces)
    inner, outer = (half - faces.distance_nm) / MEMBRANE_EDGE_NM, (half + faces.distance_nm) / MEMBRANE_EDGE_NM
    dark: Field = inner / np.sqrt(1 + inner * inner) + outer / np.sqrt(1 + outer * outer)
    return np.float32(MEMBRANE_HALF_NM / 2) * dark / half


def _half_width(faces: Faces) -> Field:
    """Half a membrane's width across the face, nm, as a section shows it.

    Seen through a section, a membrane of half width t is smeared over h = |n_z| x half the section's thickness. A box
    convolved with a box is as wide at half depth as the wider of them, and loses depth only where h exceeds t.
    """
    smear = np.float32(VOXEL_SIZE_NM[0] / 2) * faces.obliqueness
    width: Field = np.maximum(smear, np.float32(MEMBRANE_HALF_NM))
    return width
