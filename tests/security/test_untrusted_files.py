"""Volumes and bundles that somebody sent: nothing in them runs, and nothing leads out of them."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from bundles import make_bundle
from tessera.geometry.boxes import Box
from tessera.model.bundle import WEIGHTS, bundle_digest, load_model
from tessera.model.safe_layers import check_safe
from tessera.model.weights_file import check_weights
from tessera.settings.ingest import IngestSettings
from tessera.storage.volumes import create_volume, open_volume
from tessera.workflows.ingest import ingest


class Payload:
    """What runs when it is unpickled: it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.trace, "w"))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "it-ran"


# Volumes


def v2_array(folder: Path, chunk: bytes, **metadata: object) -> Path:
    """A Zarr v2 array of one chunk, its metadata as given."""
    plain = {"zarr_format": 2, "shape": [4, 8, 8], "chunks": [4, 8, 8], "dtype": "|u1", "compressor": None}
    folder.mkdir()
    (folder / ".zarray").write_text(json.dumps({**plain, "fill_value": 0, "filters": None, "order": "C", **metadata}))
    (folder / "0.0.0").write_bytes(chunk)
    return folder


@pytest.mark.parametrize(
    "metadata",
    [
        {"filters": [{"id": "pickle", "protocol": 5}]},
        {"compressor": {"id": "pickle", "protocol": 5}},
        {"filters": [{"id": "zstd", "level": 1}, {"id": "pickle", "protocol": 5}]},
    ],
    ids=["filter", "compressor", "second filter"],
)
def test_an_array_that_asks_for_pickle_is_no_volume(tmp_path: Path, trace: Path, metadata: dict[str, object]) -> None:
    folder = v2_array(tmp_path / "raw.zarr", pickle.dumps(Payload(trace)), **metadata)
    with pytest.raises(ValueError, match=r"metadata cannot be read .*pickle"):
        open_volume(folder).read(Box((0, 0, 0), (4, 8, 8)))
    assert not trace.exists()


def test_an_array_of_objects_is_no_volume_not_even_by_its_fill_value(tmp_path: Path, trace: Path) -> None:
    data = pickle.dumps(Payload(trace))
    told = {"dtype": "|O", "filters": [{"id": "pickle"}], "fill_value": base64.b64encode(data).decode()}
    with pytest.raises(ValueError, match=r"metadata cannot be read|not supported"):
        open_volume(v2_array(tmp_path / "raw.zarr", data, **told))
    assert not trace.exists()


def test_the_volumes_that_tessera_and_others_write_are_read(tmp_path: Path) -> None:
    import numcodecs

    raw = np.random.default_rng(1).integers(0, 255, (4, 8, 8), np.uint8)
    own = create_volume(tmp_path / "own.zarr", raw.shape, raw.dtype, voxel_size_nm=(50, 4, 4))
    own.write(Box.whole(raw.shape), raw)
    filters = [numcodecs.Delta(dtype="u1")]
    where, shrunk = tmp_path / "other.zarr", numcodecs.Blosc()
    zarr.create_array(where, data=raw, zarr_format=2, filters=filters, compressors=shrunk, chunks=(2, 8, 8))
    for place in (own.place, where):
        np.testing.assert_array_equal(open_volume(place).read(Box.whole(raw.shape)), raw)


@pytest.mark.parametrize("path", ["../secret.zarr/0", "0/../../secret.zarr/0", "/etc", ""])
def test_a_level_outside_its_image_is_refused(tmp_path: Path, path: str) -> None:
    for name in ("secret", "image"):
        create_volume(tmp_path / f"{name}.zarr", (4, 8, 8), np.uint8, voxel_size_nm=(50, 4, 4))
    document = tmp_path / "image.zarr" / "zarr.json"
    told = json.loads(document.read_text())
    told["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = path
    document.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="leads out of the image"):
        open_volume(tmp_path / "image.zarr")


# Sources


@pytest.mark.parametrize(
    ("name", "write"), [("stack.zip", zipfile.ZipFile), ("stack.tar.gz", None), ("stack.npy", None)]
)
def test_archives_and_pickled_arrays_are_no_sources(
    tmp_path: Path, trace: Path, name: str, write: Callable[..., zipfile.ZipFile] | None
) -> None:
    source = tmp_path / name
    if write is not None:
        with write(source, "w") as archive:
            archive.writestr("../../escaped.tif", b"x")
    else:
        np.save(source.open("wb"), np.array([Payload(trace)]), allow_pickle=True)
    with pytest.raises(ValueError, match="neither TIFF nor PNG"):
        ingest(IngestSettings(str(source), "raw", (50.0, 4.0, 4.0), engine="serial"))
    assert not trace.exists() and not list(tmp_path.parent.glob("escaped*"))


def test_an_ome_tiff_that_names_other_files_reads_none_of_them(tmp_path: Path, home: Path) -> None:
    secret = np.full((1, 32, 32), 99, np.uint8)
    tifffile.imwrite(tmp_path / "secret.tif", secret, photometric="minisblack")
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "stack.ome.tif"
    planes = "".join(
        f'<TiffData FirstZ="{z}" PlaneCount="1" IFD="0"><UUID FileName="{name}">urn:uuid:{z}</UUID></TiffData>'
        for z, name in enumerate(("stack.ome.tif", "../secret.tif"))
    )
    ome = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0"><Image ID="Image:0"><Pixels '
        'ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="32" SizeY="32" SizeZ="2" SizeC="1" SizeT="1">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
    )
    tifffile.imwrite(source, np.zeros((32, 32), np.uint8), description=ome, metadata=None, photometric="minisblack")
    try:
        place = ingest(IngestSettings(str(source), "raw", (50.0, 4.0, 4.0), engine="serial"))
    except ValueError:
        return  # refused: as good
    volume = open_volume(place)
    assert not (volume.read(Box.whole(volume.shape)) == 99).any()


# Bundles


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b")


def rewritten(bundle: Path, target: Path, change: Callable[[dict[str, Any]], None], **members: bytes) -> Path:
    """A copy of a bundle whose network is described otherwise, with further members in its weights file."""
    shutil.copytree(bundle, target)
    with zipfile.ZipFile(bundle / WEIGHTS) as old, zipfile.ZipFile(target / WEIGHTS, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                config = json.loads(content)
                change(config)
                content = json.dumps(config).encode()
            new.writestr(name, content)
        for name, content in members.items():
            new.writestr(name, content)
    return target


def foreign(class_name: str, module: str, registered: str | None = None) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        layer = next(one for one in config["config"]["layers"] if one["class_name"] == "ReLU")
        layer |= {"class_name": class_name, "module": module, "registered_name": registered}

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (foreign("Lambda", "keras.layers"), "Lambda"),
        (foreign("TFSMLayer", "keras.layers"), "TFSMLayer"),
        (foreign("system", "os"), "system"),
        (foreign("ReLU", "builtins"), "ReLU"),
        (foreign("ReLU", "kerasevil.layers"), "ReLU"),
        (foreign("ReLU", "keras.layers", "Custom>Evil"), "Custom>Evil"),
    ],
    ids=["lambda", "saved model", "os", "builtins", "look-alike", "registered"],
)
def test_a_bundle_of_foreign_parts_is_refused_before_keras_sees_it(
    bundle: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    evil = rewritten(bundle, tmp_path / "b", change)
    with pytest.raises(ValueError, match=f"is built of .*{said}.*could run code"):
        load_model(evil)


@pytest.mark.parametrize("name", ["../../escaped.txt", "/etc/escaped", "assets/x.py", "config.json"])
def test_a_bundle_with_further_members_is_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.warns(UserWarning, match="Duplicate name") if name == "config.json" else nullcontext():
        evil = rewritten(bundle, tmp_path / "b", lambda _: None, **{name: b"x"})
    with pytest.raises(ValueError, match="as no bundle of tessera's does"):
        check_safe(evil / WEIGHTS)


def test_a_pickle_in_place_of_the_weights_is_not_opened(bundle: Path, tmp_path: Path, trace: Path) -> None:
    evil = shutil.copytree(bundle, tmp_path / "b")
    (evil / WEIGHTS).write_bytes(pickle.dumps(Payload(trace)))
    for load in (load_model, lambda folder: check_weights(folder, None)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="damaged"):
            load(evil)
    assert not trace.exists()


def test_a_bundle_that_was_exchanged_after_it_was_chosen_is_not_loaded(bundle: Path, tmp_path: Path) -> None:
    chosen = bundle_digest(bundle)
    other = make_bundle(tmp_path / "b", seed=8)
    with pytest.raises(ValueError, match="is not the bundle that this job chose"):
        load_model(other, chosen)
    assert load_model(bundle, chosen).count_params() > 0


def test_every_network_that_tessera_builds_is_of_known_parts(tmp_path: Path) -> None:
    for padding in ("valid", "same"):
        made = make_bundle(tmp_path / padding, padding)  # type: ignore[arg-type]
        check_safe(made / WEIGHTS)
        assert load_model(made).count_params() > 0
