"""The first global batch for the eye: what the network was really fed, from the arrays of the training workers.

A picture made anew would show what the code would feed, and agree with itself where the training is wrong. So each
worker keeps its share of the first step's arrays, and the controller joins them once all are there:

    worker r     batch of step 0 --> FOLDER/r-of-WORLD.npz
    controller   all of them     --> one sheet in MLflow, and first-batch.png in the run's folder

Only the grid in it is computed, by the draw that the sample's index names: the map itself is not among what is fed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.images.colours import shown_grey
from tessera.images.overlay import painted, section_grid
from tessera.storage.arrays import load_arrays, save_arrays
from tessera.storage.files import write_atomically
from tessera.tracking.outbox import Outbox
from tessera.tracking.pictures import Panel, contact_sheet, png_bytes
from tessera.tracking.runs import Tracker

KEPT, PICTURE, KEY = "first-batch", "first-batch.png", "first_batch"
MOST_SHOWN, GRID_PX = 8, 32
_LINE = (255, 200, 0)
_NOT_SCORED = 0.5

Batch = Mapping[str, NDArray[Any]]


# The worker.


def keeping_first(
    batches: Iterable[Batch], folder: Path, maps: Sequence[NDArray[np.float32]], titles: Sequence[str], share: str
) -> Iterator[Batch]:
    """The same batches; of the first, as many samples are kept for the picture as there are maps.

    Args:
      batches: `image` float32 (b, y, x) or (b, y, x, c), `target` uint8 (b, y', x'), `weights` float32 (b, y', x').
      folder: where to keep them; every worker's is the same.
      maps: of the first samples, float32 (2, y, x) each: where each pixel was read in its section.
      titles: of the same samples.
      share: which part of the global batch this is, "RANK-of-WORLD".
    """
    for number, batch in enumerate(batches):
        if number == 0:
            folder.mkdir(parents=True, exist_ok=True)
            save_arrays(folder / f"{share}.npz", _kept(batch, maps, titles))
        yield batch


def _kept(batch: Batch, maps: Sequence[NDArray[np.float32]], titles: Sequence[str]) -> dict[str, NDArray[Any]]:
    """As little as the picture needs: the first step waits for it to be written."""
    count = len(maps)
    images = [image if image.ndim == 2 else image[..., image.shape[-1] // 2] for image in batch["image"][:count]]
    return {
        "grey": np.stack([shown_grey(image) for image in images]),
        "grid": np.stack([section_grid(one, GRID_PX) for one in maps]),
        "target": batch["target"][:count],
        "weights": batch["weights"][:count],
        "title": np.array(titles),
    }


# The controller.


def show_first_batch(run: Outbox | Tracker, folder: Path) -> None:
    """Log the sheet once all workers have kept their share; nothing before that, nor where it is logged already.

    Args:
      run: the training's.
      folder: the run's.
    """
    kept = folder / KEPT
    if not kept.exists():
        return
    if not (folder / PICTURE).exists():
        shares = complete_shares(path.name for path in kept.iterdir())
        if not shares:
            return
        sheet = first_batch_sheet([load_arrays(kept / name) for name in shares])
        run.picture(KEY, sheet, 0, "what the first step was fed:")
        write_atomically(folder / PICTURE, png_bytes(sheet))
    shutil.rmtree(kept)


def complete_shares(names: Iterable[str]) -> list[str]:
    """The files of one global batch by rank, where all are there; a group that was lost may have left others.

    >>> complete_shares(["0-of-2.npz", "2-of-3.npz", "1-of-2.npz"])
    ['0-of-2.npz', '1-of-2.npz']
    >>> complete_shares(["0-of-2.npz"])
    []
    """
    present = set(names)
    for world in sorted({int(found[1]) for name in present if (found := re.fullmatch(r"\d+-of-(\d+)\.npz", name))}):
        wanted = [f"{rank}-of-{world}.npz" for rank in range(world)]
        if present.issuperset(wanted):
            return wanted
    return []


def first_batch_sheet(shares: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.uint8]:
    """A row per sample, in the order of their indices; pixels without a loss of their own are grey.

    Args:
      shares: what each worker kept, by rank; sample i of rank r has the index i x workers + r.

    Returns:
      uint8, (y, x, 3).
    """
    most = max(float(share["weights"].max()) for share in shares)
    picked = [(share, i) for i in range(MOST_SHOWN) for share in shares if i < len(share["grey"])][:MOST_SHOWN]
    return contact_sheet([_panels(share, i, most) for share, i in picked], [str(s["title"][i]) for s, i in picked])


def _panels(share: Mapping[str, NDArray[Any]], i: int, most: float) -> Panel:
    grey, target, weights = share["grey"][i], share["target"][i], share["weights"][i]
    shown = np.where(target > 1, np.float32(_NOT_SCORED), target.astype(np.float32))
    return {
        "image": grey,
        f"the section's grid, {GRID_PX} px": painted(grey, share["grid"][i], _LINE),
        "target: membrane": _framed(shown, grey.shape),
        f"loss weight, 0 to {most:.3g}": _framed(weights / max(most, np.finfo(np.float32).tiny), grey.shape),
    }


def _framed(inner: NDArray[np.float32], extent: tuple[int, ...]) -> NDArray[np.float32]:
    """The scored middle of an image, with grey where there is context alone."""
    frame = np.full(extent, np.float32(_NOT_SCORED))
    y, x = ((whole - part) // 2 for whole, part in zip(extent, inner.shape, strict=True))
    frame[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
    return frame
