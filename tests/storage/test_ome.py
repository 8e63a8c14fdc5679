"""Promises about NGFF metadata: what we write validates, and what we read comes out in nanometers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ome_zarr_models.v04.image import ImageAttrs as ImageAttrs04
from ome_zarr_models.v05.image import ImageAttrs as ImageAttrs05

from tessera.storage.ome import Level, check_voxel_size, ome_attributes, parse_image

sizes = st.tuples(*[st.floats(0.1, 1000).map(lambda size: float(f"{size:.6g}"))] * 3)


@settings(deadline=None, max_examples=40)
@given(sizes, st.sampled_from([("z", "y", "x"), ("c", "z", "y", "x")]), st.integers(1, 4))
def test_what_is_written_reads_back(size: tuple[float, ...], axes: tuple[str, ...], count: int) -> None:
    levels = [
        Level(str(i), (size[0], size[1] * 2**i, size[2] * 2**i), (0.0, size[1] * i, size[2] * i) if i else None)
        for i in range(count)
    ]
    channels = ["membrane"] if axes[0] == "c" else []
    ome = ome_attributes(axes, levels, name="em", channels=channels)
    image = parse_image({"ome": ome})
    assert (image.axes, image.name, image.version) == (axes, "em", "0.5")
    assert image.channels == tuple(channels)
    for read, level in zip(image.levels, levels, strict=True):
        assert read.path == level.path
        assert read.voxel_size_nm == pytest.approx(level.voxel_size_nm, rel=1e-9)
        assert read.translation_nm == (level.translation_nm and pytest.approx(level.translation_nm, rel=1e-9))
    assert image.voxel_size_nm == size
    ImageAttrs05.model_validate(ome)


def test_an_unknown_voxel_size_writes_no_unit_and_reads_back_as_unknown() -> None:
    ome = ome_attributes("zyx", [Level("0", None)])
    assert all("unit" not in axis for axis in ome["multiscales"][0]["axes"])
    assert parse_image({"ome": ome}).voxel_size_nm is None


def multiscale(unit: str | None = "micrometer", **changes: Any) -> dict[str, Any]:
    axis = {"type": "space"} | ({} if unit is None else {"unit": unit})
    image = {
        "version": "0.4",
        "axes": [{"name": name, **axis} for name in "zyx"],
        "datasets": [
            {"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": [0.05, 0.004, 0.004]}]},
            {"path": "s1", "coordinateTransformations": [{"type": "scale", "scale": [0.05, 0.008, 0.008]}]},
        ],
    }
    return image | changes


def test_version_0_4_in_micrometers_reads_as_nanometers() -> None:
    attributes = {"multiscales": [multiscale()], "omero": {"channels": [{"label": "EM"}]}}
    ImageAttrs04.model_validate({"multiscales": [multiscale()]})
    image = parse_image(attributes)
    assert image.version == "0.4" and image.channels == ("EM",)
    assert [level.path for level in image.levels] == ["s0", "s1"]
    assert image.voxel_size_nm == (50.0, 4.0, 4.0)
    assert image.levels[1].voxel_size_nm == (50.0, 8.0, 8.0)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("nanometer", 1), ("nm", 1), ("angstrom", 0.1), ("µm", 1e3), ("millimeter", 1e6), ("meter", 1e9)],
)
def test_units_of_length_become_nanometers(unit: str, factor: float) -> None:
    size = parse_image({"multiscales": [multiscale(unit)]}).voxel_size_nm
    assert size == pytest.approx((0.05 * factor, 0.004 * factor, 0.004 * factor), rel=1e-12)


@pytest.mark.parametrize("unit", [None, "", "pixel"])
def test_without_a_unit_of_length_the_voxel_size_is_unknown(unit: str | None) -> None:
    assert parse_image({"multiscales": [multiscale(unit)]}).voxel_size_nm is None


def test_transformations_shared_by_all_levels_apply_after_each_levels_own() -> None:
    own = [{"type": "scale", "scale": [1, 2, 2]}, {"type": "translation", "translation": [1, 0, 3]}]
    shared = [{"type": "scale", "scale": [50, 4, 4]}]
    image = multiscale(
        "nanometer", datasets=[{"path": "0", "coordinateTransformations": own}], coordinateTransformations=shared
    )
    (level,) = parse_image({"multiscales": [image]}).levels
    assert level == Level("0", (50.0, 8.0, 8.0), (50.0, 0.0, 12.0))


def named(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "type": "space", "unit": "nanometer"} for name in names]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "no `multiscales` in the attributes"),
        ({"ome": {"version": "0.5", "plate": {}}}, "no `multiscales`"),
        ({"ome": "0.5"}, "no `multiscales`"),
        ({"multiscales": []}, "no `multiscales`"),
        ({"multiscales": [{}]}, "broken NGFF"),
        ({"multiscales": [multiscale(axes=None)]}, "broken NGFF"),
        ({"multiscales": [multiscale(axes=named("x", "y", "z"))]}, "axes x, y, z: only z, y, x.*transposed"),
        ({"multiscales": [multiscale(axes=named("y", "x"))]}, "axes y, x: only"),
        ({"multiscales": [multiscale(axes=named("t", "c", "z", "y", "x"))]}, "Save one time point"),
        ({"multiscales": [multiscale(datasets=[])]}, "without datasets"),
        ({"multiscales": [multiscale(datasets=[{}])]}, "broken NGFF|path"),
        ({"multiscales": [multiscale("parsec")]}, "unit 'parsec' of an axis is no known length"),
        (
            {"multiscales": [multiscale(coordinateTransformations=[{"type": "scale", "scale": [0, 1, 1]}])]},
            "three positive sizes",
        ),
    ],
)
def test_attributes_that_do_not_describe_z_y_x_are_refused(attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_image(attributes)


@pytest.mark.parametrize("size", [[50, 4], [50, 4, 0], [50, 4, -1], [50, 4, float("nan")], [50, 4, float("inf")]])
def test_a_voxel_size_is_three_positive_numbers(size: list[float]) -> None:
    with pytest.raises(ValueError, match=r"three positive sizes are needed, z, y, x in nanometers"):
        check_voxel_size(size)


def test_illegal_metadata_are_not_written() -> None:
    with pytest.raises(ValueError, match="axes x, y, z: only"):
        ome_attributes("xyz", [Level("0", (1.0, 1.0, 1.0))])
    with pytest.raises(ValueError, match=r"channels .*without c"):
        ome_attributes("zyx", [Level("0", (1.0, 1.0, 1.0))], channels=["membrane", "cell"])
    with pytest.raises(ValueError, match="datasets"):
        ome_attributes("zyx", [])
