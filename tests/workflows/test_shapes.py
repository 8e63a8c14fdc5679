"""Surfaces and skeletons lie where their objects do, in nanometers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from terminal import refusal, tessera
from tessera.labels.shapes import mesh_bytes
from volumes import put_volume

pytest.importorskip("zmesh", reason="an extra: pip install 'tessera[shapes]'")
pytest.importorskip("kimimaro", reason="an extra: pip install 'tessera[shapes]'")

Capsys = pytest.CaptureFixture[str]
SIZE = (50.0, 4.0, 8.0)


@pytest.fixture
def cells(home: Path) -> Path:
    """A brick of id 2^40 and a rod along z of id 9, in a volume that lies elsewhere."""
    ids = np.zeros((30, 40, 50), np.uint64)
    ids[4:10, 5:35, 6:46] = 2**40
    ids[12:28, 20:23, 20:23] = 9
    return put_volume(home / "volumes" / "cells.zarr", ids, SIZE, (1000.0, 40.0, 80.0), kind="cells")


def _vertices(obj: bytes) -> Any:
    return np.array([line.split()[1:4] for line in obj.decode().splitlines() if line.startswith("v ")], float)


def test_a_surface_encloses_its_object(cells: Path, capsys: Capsys, tmp_path: Path) -> None:
    words = ("--ids", f"[{2**40}]", "--output", tmp_path / "s", "--file_format", "obj", "--max_error_nm", "0")
    answer = tessera(capsys, "shapes", "cells", *words, "--engine", "serial")
    assert answer.code == 0, answer.err
    found = _vertices((tmp_path / "s" / f"{2**40}.obj").read_bytes())
    # x, y, z: half a voxel beyond the centres of the outermost voxels.
    assert found.min(axis=0).tolist() == [80 + 5.5 * 8, 40 + 4.5 * 4, 1000 + 3.5 * 50]
    assert found.max(axis=0).tolist() == [80 + 45.5 * 8, 40 + 34.5 * 4, 1000 + 9.5 * 50]


@pytest.mark.parametrize(("form", "begins"), [("ply", b"ply\n"), ("precomputed", b"")])
def test_the_other_formats_are_written(cells: Path, capsys: Capsys, tmp_path: Path, form: str, begins: bytes) -> None:
    words = ("--ids", "[9]", "--output", tmp_path, "--file_format", form, "--engine", "serial")
    assert tessera(capsys, "shapes", "cells", *words).code == 0
    content = (tmp_path / ("9.ply" if form == "ply" else "9")).read_bytes()
    assert content.startswith(begins) and len(content) > 100


def test_a_skeleton_runs_along_its_object(cells: Path, capsys: Capsys, tmp_path: Path) -> None:
    words = ("--ids", "[9]", "--output", tmp_path, "--what", "skeleton", "--engine", "serial")
    assert tessera(capsys, "shapes", "cells", *words).code == 0
    rows = [line.split() for line in (tmp_path / "9.swc").read_text().splitlines() if line and line[0] != "#"]
    points = np.array([row[2:5] for row in rows], float)
    assert np.abs(points[:, 0] - (80 + 21 * 8)).max() <= 8 and np.abs(points[:, 1] - (40 + 21 * 4)).max() <= 4
    assert points[:, 2].min() <= 1000 + 14 * 50 and points[:, 2].max() >= 1000 + 25 * 50


def test_simplification_stays_within_its_error() -> None:
    z, y, x = np.indices((40, 40, 40)) - 20
    ball = z * z + y * y + x * x < 15 * 15
    full, less = (_vertices(mesh_bytes(ball, (4, 4, 4), (0, 0, 0), error, "obj")) for error in (0, 4))
    assert len(less) < len(full) / 4
    radii = np.linalg.norm(less - 80, axis=1)
    assert radii.min() > 4 * 13.4 and radii.max() < 4 * 16.1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--ids", "[3]"), "has no object of id [3]: tessera objects lists those there are."),
        (("--ids", "[9]", "--memory_gib", "1e-9"), "which take 0.0 GiB: more than memory_gib=1e-09"),
    ],
)
def test_objects_that_cannot_be_had_are_refused(
    cells: Path, capsys: Capsys, home: Path, tmp_path: Path, words: tuple[str, ...], told: str
) -> None:
    answer = tessera(capsys, "shapes", "cells", "--output", tmp_path / "s", "--engine", "serial", *words)
    assert answer.code == 2 and told in answer.err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "ids is not given. Try --ids [5,9]."),
        (("--ids", "[0]"), "ids hold 0"),
        (
            ("--ids", "[9]", "--file_format", "swc"),
            "file_format=swc is none of a mesh: give ply or obj or precomputed.",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    cells: Path, capsys: Capsys, home: Path, words: tuple[str, ...], told: str
) -> None:
    assert told in refusal(capsys, home, "shapes", "cells", "--output", "s", *words)
