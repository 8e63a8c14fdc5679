"""HDF5 as labs exchange volumes in it: one dataset of a file, with voxel size and place as its attributes.

    sample_A.hdf
      volumes/raw                 uint8, z, y, x      resolution = 40, 4, 4 nm
      volumes/labels/neuron_ids   uint64, z, y, x     resolution, and offset = where it begins in raw, nm

Source: the layout of the CREMI challenge (cremi.org), which FlyEM's and Janelia's exports share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tessera.geometry.boxes import Box
from tessera.storage.ome import check_voxel_size
from tessera.storage.pixels import Kind, check_dtype, check_finite, invert_scale

if TYPE_CHECKING:  # settings look at suffixes here: only those who read import the library
    import h5py

SUFFIXES = (".h5", ".hdf", ".hdf5", ".he5")
USUAL = {"image": "volumes/raw", "labels": "volumes/labels/neuron_ids"}
"""The dataset that CREMI's files keep each kind in."""

Nm = tuple[float, float, float]


@dataclass(frozen=True)
class Hdf5Array:
    """One dataset, checked; it travels to other processes and reopens there.

    Attributes:
      path: the file.
      dataset: path inside the file.
      kind: image or labels.
      shape: z, y, x.
      stored: dtype as stored.
      resolution_nm: z, y, x, as the file says; None where it does not.
      offset_nm: where voxel 0 lies, as the file says; None where it does not.
      invert: whether grey values are inverted.
    """

    path: Path
    dataset: str
    kind: Kind
    shape: tuple[int, int, int]
    stored: np.dtype[Any]
    resolution_nm: Nm | None = None
    offset_nm: Nm | None = None
    invert: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the voxels that are read: bool becomes uint8, 0 or 255."""
        return np.dtype(np.uint8) if self.stored.kind == "b" else self.stored.newbyteorder("=")

    @contextmanager
    def opened(self) -> Iterator[h5py.Dataset]:
        """The dataset, open for reading; no lock is taken, for network file systems often have none.

        Raises:
          ValueError: the file is corrupt.
        """
        import h5py

        try:
            file = h5py.File(self.path, "r", locking=False)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        with file:
            yield file[self.dataset]

    def read(self, box: Box) -> NDArray[Any]:
        """The voxels of a box, by the rules of the kind.

        Args:
          box: z, y, x, inside the array.

        Returns:
          `dtype`, of the box's shape.

        Raises:
          ValueError: the file is corrupt, or holds NaN or infinity there.
        """
        name = f"{self.path}, {self.dataset} {box}"
        with self.opened() as dataset:
            try:
                values = np.asarray(dataset[box.slices])
            except OSError as error:
                raise _unreadable(self.path, error) from error
        if self.invert:
            values = invert_scale(values, 8 * values.dtype.itemsize, name)
        check_finite(values, name)
        return values.astype(np.uint8) * 255 if values.dtype.kind == "b" else values.astype(self.dtype, copy=False)


def is_hdf5(path: Path | str) -> bool:
    """Whether a file is HDF5, by its suffix."""
    return str(path).lower().endswith(SUFFIXES)


def open_hdf5(path: Path, *, kind: Kind, dataset: str | None = None, invert: bool | None = None) -> Hdf5Array:
    """Find a dataset and check what it says of itself; no voxels are read.

    Args:
      path: the file.
      kind: image or labels.
      dataset: path inside the file; None takes the usual one of the kind, or the only 3D one there is.
      invert: whether grey values are inverted.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not HDF5, has no such dataset, or the dataset is no volume; says what there is.
    """
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give an HDF5 file.")
    try:
        with h5py.File(path, "r", locking=False) as file:
            name = _chosen(path, file, kind, dataset)
            return _checked(path, file[name], name, kind, bool(invert))
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path}: not a readable HDF5 file ({error}): it is truncated or corrupt. Copy it again.")


def _chosen(path: Path, file: h5py.File, kind: Kind, wanted: str | None) -> str:
    found = _volumes_of(file)
    usual = wanted.strip("/") if wanted else USUAL[kind]
    if usual in found:
        return usual
    if wanted is None and len(found) == 1:
        return found[0]
    shown = ", ".join(found[:8]) or "none"
    what = f"has no 3D dataset {usual}" if wanted else f"has no 3D dataset {usual}, where CREMI's files keep {kind}"
    raise ValueError(f"{path} {what}; there are: {shown}. Give one of them as --dataset.")


def _volumes_of(file: h5py.File) -> list[str]:
    import h5py

    found: list[str] = []
    file.visititems(
        lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) and item.ndim == 3 else None
    )
    return found


def _checked(path: Path, dataset: h5py.Dataset, name: str, kind: Kind, invert: bool) -> Hdf5Array:
    where = f"{path}, {name}"
    check_dtype(dataset.dtype, kind, where)
    if dataset.external or dataset.is_virtual:
        raise ValueError(
            f"{where} keeps its voxels in other files, which whoever made it may have chosen: they are not read. Copy "
            "it into a file of its own, for example with h5repack."
        )
    if 0 in dataset.shape:
        raise ValueError(f"{where} has shape {dataset.shape} and holds no voxel: there is nothing to read.")
    z, y, x = (int(n) for n in dataset.shape)
    size = _three(dataset, "resolution", where)
    return Hdf5Array(
        path=path,
        dataset=name,
        kind=kind,
        shape=(z, y, x),
        stored=dataset.dtype,
        resolution_nm=None if size is None else check_voxel_size(size),
        offset_nm=_three(dataset, "offset", where),
        invert=invert,
    )


def _three(dataset: h5py.Dataset, name: str, where: str) -> Nm | None:
    """An attribute of three numbers in nanometers, z, y, x; None where there is none."""
    if name not in dataset.attrs:
        return None
    values: Sequence[float] = np.ravel(dataset.attrs[name]).tolist()
    if len(values) != 3 or not all(isinstance(value, int | float) and np.isfinite(value) for value in values):
        raise ValueError(
            f"{where}: its attribute {name} is {values}: three numbers are needed, z, y, x in nanometers. Mend "
            "the file."
        )
    return float(values[0]), float(values[1]), float(values[2])
