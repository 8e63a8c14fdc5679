"""One object as a surface or a skeleton, in files that viewers of neurons read: coordinates are x, y, z in nanometers.

The work is that of zmesh and kimimaro, which are installed with `tessera[shapes]`. Both count from the centre of voxel
0, as NGFF does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MeshFormat = Literal["ply", "obj", "precomputed"]
SkeletonFormat = Literal["swc", "precomputed"]
ENDINGS = {"ply": ".ply", "obj": ".obj", "swc": ".swc", "precomputed": ""}
"""Of file names; neuroglancer's precomputed files are named by the id alone."""

_INSTALL = "Install them with: pip install 'tessera[shapes]'."


def check_installed(what: Literal["mesh", "skeleton"]) -> None:
    """Refuse work whose library is not there, before voxels are read.

    Raises:
      ValueError: says what to install.
    """
    try:
        if what == "mesh":
            import zmesh  # noqa: F401
        else:
            import kimimaro  # noqa: F401
    except ImportError as error:
        raise ValueError(f"a {what} needs {error.name}, which is not installed. {_INSTALL}") from None


def mesh_bytes(
    inside: NDArray[np.bool_],
    voxel_size_nm: Sequence[float],
    origin_nm: Sequence[float],
    max_error_nm: float,
    form: MeshFormat,
) -> bytes:
    """The surface of an object, closed where the array ends.

    Args:
      inside: bool, (z, y, x).
      voxel_size_nm: z, y, x.
      origin_nm: the centre of the array's voxel 0, z, y, x.
      max_error_nm: how far simplification may move the surface; 0 keeps every face of marching cubes.
      form: of the file.
    """
    import zmesh

    around = np.pad(inside, 1).transpose().astype(np.uint8)
    mesher = zmesh.Mesher(tuple(float(n) for n in voxel_size_nm[::-1]))
    mesher.mesh(np.asfortranarray(around))
    reduction = 100 if max_error_nm > 0 else 0
    mesh = mesher.get(1, normals=False, reduction_factor=reduction, max_error=max_error_nm or None)
    first = np.subtract(origin_nm, voxel_size_nm)[::-1]  # of the voxel that was put around
    mesh.vertices = (mesh.vertices + first).astype(np.float32)
    return _as_bytes(getattr(mesh, f"to_{form}")())


def skeleton_bytes(
    inside: NDArray[np.bool_], voxel_size_nm: Sequence[float], origin_nm: Sequence[float], form: SkeletonFormat
) -> bytes:
    """The centreline of an object with its radii, by TEASAR.

    Args:
      inside: bool, (z, y, x).
      voxel_size_nm: z, y, x.
      origin_nm: the centre of the array's voxel 0, z, y, x.
      form: of the file.

    Raises:
      ValueError: nothing is left of the object.

    Source: Sato et al. 2000, "TEASAR: tree-structure extraction algorithm for accurate and robust skeletons".
    """
    import kimimaro

    size = tuple(float(n) for n in voxel_size_nm[::-1])
    labels = np.asfortranarray(inside.transpose().astype(np.uint8))
    found = kimimaro.skeletonize(labels, anisotropy=size, dust_threshold=0, progress=False)
    if 1 not in found:
        raise ValueError(f"an object of {np.count_nonzero(inside)} voxels has no skeleton: choose larger ones.")
    skeleton = found[1]
    skeleton.vertices = (skeleton.vertices + np.asarray(origin_nm[::-1])).astype(np.float32)
    return _as_bytes(getattr(skeleton, f"to_{form}")())


def _as_bytes(content: Any) -> bytes:
    return content.encode() if isinstance(content, str) else bytes(content)
