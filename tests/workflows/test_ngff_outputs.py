"""What the commands write is right to ome-zarr-models, and lies where the raw volume's own coordinates say.

Every extent is odd, so that each level of a pyramid has a voxel that passes the edge of the one above.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from bundles import make_bundle
from ngff import image_label_of, validated_levels
from terminal import tessera
from tessera.images.colours import label_colours
from tessera.storage.volumes import create_volume
from volumes import grey

Capsys = pytest.CaptureFixture[str]
SHAPE, SIZE, AT = (3, 75, 103), (50.0, 4.0, 4.0), (1000.0, 40.0, -80.0)
SERIAL = ("--engine", "serial", "--attempts", "1")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[float, Path]:
    """A model of the volume's voxels, and one of larger ones."""
    folder = tmp_path_factory.mktemp("bundles")
    return {size: make_bundle(folder / str(size), voxel_size_nm=(50.0, size, size)) for size in (4.0, 6.0)}


@pytest.fixture
def raw(home: Path) -> Path:
    """A volume that was itself cut out of a larger one."""
    layout = {"chunk": SHAPE, "shard": SHAPE}
    path = home / "volumes" / "raw.zarr"
    create_volume(path, SHAPE, np.uint8, voxel_size_nm=SIZE, translation_nm=AT, **layout).array[:] = grey(SHAPE)
    return path


@pytest.mark.parametrize(
    ("ome_zarr", "size", "words", "shape", "edge"),
    [
        ("0.5", 4.0, (), SHAPE, (975.0, 38.0, -82.0)),
        ("0.4", 4.0, ("--roi", "1:2,7:70,5:96"), (1, 63, 91), (1025.0, 66.0, -62.0)),
        ("0.4", 6.0, ("--resample", "true"), (3, 50, 69), (975.0, 38.0, -82.0)),
        ("0.5", 6.0, ("--resample", "true", "--roi", "0:3,7:40,5:60"), (3, 33, 55), (975.0, 80.0, -52.0)),
    ],
    ids=["whole", "region", "resampled", "resampled region"],
)
def test_predictions_cells_and_their_pyramids_validate_and_lie_in_place(
    bundles: dict[float, Path],
    raw: Path,
    capsys: Capsys,
    ome_zarr: str,
    size: float,
    words: tuple[str, ...],
    shape: tuple[int, ...],
    edge: tuple[float, ...],
) -> None:
    version = ("--ome_zarr", ome_zarr, *SERIAL)
    predict = ("predict", "--volume", "raw", "--model", bundles[size], "--output", "p", *words)
    for command in (
        (*predict, "--output_dtype", "float16", *version),
        ("pyramid", "--volume", "p", "--levels", "3", "--engine", "serial"),
        ("segment", "--volume", "p", "--output", "c", *version),
        ("pyramid", "--volume", "c", "--levels", "3", "--engine", "serial"),
    ):
        answer = tessera(capsys, *command)
        assert answer.code == 0, answer.err
    for name in ("p", "c"):
        path = raw.parent / f"{name}.zarr"
        levels = validated_levels(path)
        assert [level.path for level in levels] == ["0", "1", "2", "3"]
        expected = shape
        for number, level in enumerate(levels):
            assert level.shape == expected
            assert level.scale == (50.0, size * 2**number, size * 2**number)
            # The first edge of every level is the region's: a level off by half a voxel is drawn beside the others.
            assert level.first_edge == pytest.approx(edge)
            expected = (expected[0], -(-expected[1] // 2), -(-expected[2] // 2))
    assert _omero(raw.parent / "p.zarr") == [("membrane probability", 0.0, 1.0)]
    label = image_label_of(raw.parent / "c.zarr")
    assert (raw.parent / "c.zarr" / label.source.image).resolve() == raw
    first = {color.label_value: color.rgba for color in label.colors[:3]}
    assert first == {i: (*label_colours(np.array(i)).tolist(), 255) for i in (1, 2, 3)}


def _omero(path: Path) -> list[tuple[Any, ...]]:
    attributes = zarr.open_group(path, mode="r").attrs.asdict()
    channels = attributes.get("ome", attributes)["omero"]["channels"]
    return [(channel["label"], channel["window"]["min"], channel["window"]["max"]) for channel in channels]
