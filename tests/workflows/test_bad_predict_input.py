"""What cannot be predicted is refused with exit code 2 and one line that says why, before Ray or a model is started.

Each case is a volume, bundle or setting as a user might give it, and what the message has to say; nothing may be left
behind. More of them, which segment and evaluate share, are in test_bad_input.py.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from objectstore import BUCKET, SECRET, S3Server
from terminal import refusal
from tessera.images.normalise import Normalisation
from tessera.model.bundle import Contract, save_contract
from tessera.model.spec import UnetSpec
from tessera.storage.volumes import create_volume, open_volume
from tessera.workflows import predict as workflow
from volumes import grey, put_volume

SHAPE = (6, 32, 40)
Capsys = pytest.CaptureFixture[str]
Arrange = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A command that must be refused.

    Attributes:
      name: what is wrong.
      told: what the message has to hold, each.
      words: options added to a command that is otherwise right.
      arrange: makes what is wrong in the folder of volumes.
      volume: the volume that is named.
      output: the output that is named.
    """

    name: str
    told: tuple[str, ...]
    words: tuple[str, ...] = ()
    arrange: Arrange = field(default=lambda folder: None)
    volume: str = "em"
    output: str = "out"


@pytest.fixture
def folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where volumes lie, with one that fits the bundle beside them; whatever starts Ray from here on fails the test."""

    def trap(*_: object) -> None:
        raise AssertionError("a job that is to be refused was started")

    monkeypatch.setattr(workflow, "session", trap)
    put_volume(home / "volumes" / "em.zarr", grey(SHAPE))
    put_bundle(home / "bundle")
    return home / "volumes"


def put_bundle(folder: Path, **changes: Any) -> None:
    """A bundle whose weights file says of itself what Keras would, and holds no weights: nothing here loads it."""
    folder.mkdir()
    spec = UnetSpec(2, 1)
    save_contract(folder, Contract(spec, Normalisation("global", 128.0, 60.0), "uint8", (50.0, 4.0, 4.0)))
    contract = json.loads((folder / "contract.json").read_text())
    (folder / "contract.json").write_text(json.dumps(contract | changes))
    put_weights(folder, filters=2)


def put_weights(folder: Path, filters: int, inputs: int = 1) -> None:
    """The layers of a U-Net with one pooling."""
    convolutions = [("Conv2D", filters, 3)] * 4 + [("Conv2D", 2 * filters, 3)] * 2 + [("Conv2D", 1, 1)]
    layers: list[dict[str, Any]] = [{"class_name": "InputLayer", "config": {"batch_shape": [None, None, None, inputs]}}]
    for kind, count, kernel in [*convolutions, ("Conv2DTranspose", filters, 2)]:
        layers.append({"class_name": kind, "config": {"filters": count, "kernel_size": [kernel, kernel]}})
    with zipfile.ZipFile(folder / "weights.keras", "w") as archive:
        archive.writestr("config.json", json.dumps({"class_name": "Functional", "config": {"layers": layers}}))
        archive.writestr("model.weights.h5", bytes(range(256)) * 64)


def _plain(folder: Path, name: str, shape: tuple[int, ...], dtype: str = "uint8", **options: Any) -> None:
    zarr.create_array(
        folder / f"{name}.zarr", shape=shape, dtype=dtype, chunks=tuple(max(1, n) for n in shape), **options
    )


def _image(folder: Path, name: str, axes: str, unit: str = "nanometer", **dataset: Any) -> None:
    group = zarr.open_group(folder / f"{name}.zarr", mode="w", zarr_format=2)
    group.create_array("0", shape=(2,) * len(axes), dtype="uint8")
    scale = [{"type": "scale", "scale": [4.0] * len(axes)}]
    named = [{"name": axis, "type": "space", "unit": unit} for axis in axes]
    datasets = [{"path": "0", "coordinateTransformations": scale, **dataset}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": named, "datasets": datasets}]


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _slices(folder: Path) -> None:
    for z in range(3):
        _write(folder / "slices" / f"{z}.tif", b"II*\0")


def _nan(folder: Path) -> None:
    voxels = grey(SHAPE).astype(np.float32)
    voxels[3, 5, 7] = np.nan
    put_volume(folder / "nan.zarr", voxels)


def _without_array(folder: Path) -> None:
    for path in (folder / "em.zarr" / "0").rglob("zarr.json"):
        path.unlink()


def _of_scalars(folder: Path) -> None:
    zarr.open_group(folder / "lab.zarr", mode="w").create_array("raw", shape=SHAPE, dtype="uint8")


VOLUMES = [
    Case("not there", ("gone does not exist: looked for ",), volume="gone"),
    Case(
        "a TIFF stack",
        ("em.tif is a TIFF file, not a Zarr volume: run `tessera ingest` first",),
        arrange=lambda f: tifffile.imwrite(f / "em.tif", grey(SHAPE)),
        volume="em.tif",
    ),
    Case("slices", ("is a folder of 3 slices, not a Zarr", "tessera ingest"), arrange=_slices, volume="slices"),
    Case(
        "HDF5",
        ("is an HDF5 file (not supported yet: convert it to Zarr)",),
        arrange=lambda f: _write(f / "em.h5", b"\x89HDF\r\n\x1a\n"),
        volume="em.h5",
    ),
    Case(
        "a text file",
        ("is a file, not a Zarr volume. Give the folder that holds zarr.json",),
        arrange=lambda f: _write(f / "em.txt", b"hello"),
        volume="em.txt",
    ),
    Case(
        "an empty folder",
        ("is an empty folder, not a Zarr volume",),
        arrange=lambda f: (f / "void").mkdir(),
        volume="void",
    ),
    Case(
        "another store", ("ftp:// is no kind of store that tessera reads (s3, gs, http",), volume="ftp://host/em.zarr"
    ),
    Case("no key", ("s3://lab names no volume: give bucket and key",), volume="s3://lab"),
    Case("a secret in the URL", ("URL holds credentials", "AWS_ACCESS_KEY_ID"), volume="s3://key:word@lab/em.zarr"),
    Case(
        "complex voxels",
        ("dtype complex64 is not supported. Convert it: bool, uint8",),
        arrange=lambda f: _plain(f, "c", SHAPE, "complex64"),
        volume="c",
    ),
    Case(
        "another dtype",
        ("the volume's dtype is uint16, the model was trained on uint8",),
        arrange=lambda f: put_volume(f / "deep.zarr", grey(SHAPE).astype(np.uint16)),
        volume="deep",
    ),
    Case(
        "NaN",
        ("nan.zarr holds NaN or infinite values in [3:4, 0:32, 0:40]: replace or mask them first",),
        ("--accept_mismatch", "true"),
        arrange=_nan,
        volume="nan",
    ),
    Case("no voxel", ("shape (0, 32, 40) holds no voxel",), arrange=lambda f: _plain(f, "e", (0, 32, 40)), volume="e"),
    Case(
        "a flat image", ("shape (32, 40)", "axes z, y, x"), arrange=lambda f: _plain(f, "flat", (32, 40)), volume="flat"
    ),
    Case(
        "time points",
        ("with dimension names ['t', 'y', 'x']", "Save one channel as z, y, x."),
        arrange=lambda f: _plain(f, "movie", SHAPE, dimension_names=("t", "y", "x")),
        volume="movie",
    ),
    Case(
        "x, y, z",
        ("axes x, y, z: only z, y, x and c, z, y, x are supported",),
        arrange=lambda f: _image(f, "xyz", "xyz"),
        volume="xyz",
    ),
    Case(
        "five axes",
        ("axes t, c, z, y, x: only", "Save one time point"),
        arrange=lambda f: _image(f, "five", "tczyx"),
        volume="five",
    ),
    Case(
        "an unknown unit",
        ("unit 'parsec' of an axis is no known length",),
        arrange=lambda f: _image(f, "far", "zyx", "parsec"),
        volume="far",
    ),
    Case(
        "a broken scale",
        ("three positive sizes are needed",),
        arrange=lambda f: _image(f, "s", "zyx", coordinateTransformations=[{"type": "scale", "scale": [50, 0, 4]}]),
        volume="s",
    ),
    Case(
        "corrupt metadata",
        ("em.zarr: its Zarr metadata cannot be read (", "Restore or rewrite them."),
        arrange=lambda f: _write(f / "em.zarr" / "zarr.json", b'{"zarr_format": 3, "node_'),
    ),
    Case(
        "an incomplete copy",
        ("level '0' of its metadata is not there: the copy is incomplete",),
        arrange=_without_array,
    ),
    Case(
        "the folder above",
        ("no `multiscales` in the attributes", "It holds raw: did you mean", "lab.zarr/raw?"),
        arrange=_of_scalars,
        volume="lab",
    ),
    Case(
        "no such level",
        ("em.zarr has no level 3 but 1: 0 ([50.0, 4.0, 4.0] nm). Give one of their numbers.",),
        ("--level", "3"),
    ),
    Case(
        "a level of a plain array",
        ("is a plain array, which has no level 1. Leave the level out.",),
        ("--level", "1"),
        arrange=lambda f: _plain(f, "plain", SHAPE),
        volume="plain",
    ),
    Case(
        "an unknown voxel size",
        ("the volume's voxel size is unknown, the model was trained on (50.0, 4.0, 4.0) nm",),
        arrange=lambda f: _plain(f, "plain", SHAPE),
        volume="plain",
    ),
    Case(
        "another voxel size",
        ("voxel size is (50.0, 8.0, 8.0) nm, the model wants (50.0, 4.0, 4.0) nm", "--resample true"),
        arrange=lambda f: put_volume(f / "coarse.zarr", grey(SHAPE), (50, 8, 8)),
        volume="coarse",
    ),
    Case(
        "a voxel size that the volume denies",
        ("em.zarr says that its voxels are [50.0, 4.0, 4.0] nm, voxel_size_nm=[40.0, 4.0, 4.0] says otherwise",),
        ("--voxel_size_nm", "[40, 4, 4]"),
    ),
    Case(
        "a voxel size below zero",
        ("voxel_size_nm=[50.0, -4.0, 4.0]: three positive sizes are needed",),
        ("--voxel_size_nm", "[50, -4, 4]"),
        arrange=lambda f: _plain(f, "plain", SHAPE),
        volume="plain",
    ),
    Case(
        "a half-written volume",
        ("half.zarr is only half-written: blocks that are missing would read as zeros",),
        arrange=lambda f: put_volume(f / "half.zarr", grey(SHAPE), complete=False),
        volume="half",
    ),
    Case(
        "floats to invert",
        ("no largest value is stated to subtract them from",),
        ("--invert_contrast", "true"),
        arrange=lambda f: put_volume(f / "f.zarr", grey(SHAPE).astype(np.float32)),
        volume="f",
    ),
]

REGIONS = [
    Case("backwards", ("is empty, runs backwards or passes the volume", "Try 0:6,0:32,0:40."), ("--roi", "4:2,:,:")),
    Case("beyond", ("passes the volume [0:6, 0:32, 0:40]",), ("--roi", "0:6,0:33,0:40")),
    Case("no numbers", ("is not three ranges z, y, x. Try 0:6,0:32,0:40.",), ("--roi", "a:b,:,:")),
    Case("two axes", ("is not three ranges z, y, x.",), ("--roi", "0:6,0:32")),
    Case(
        "nm beyond",
        ("which reaches from 0 to 300, 0 to 128, 0 to 160 nm (z, y, x). Try 0:300,0:128,0:160.",),
        ("--roi_nm", "0:301,:,:"),
    ),
    Case("nm backwards", ("is empty, runs backwards or passes",), ("--roi_nm", "100:50,:,:")),
    Case("nm in words", ("is not three ranges z, y, x, in nanometers. Try 0:300,",), ("--roi_nm", "0:1um,:,:")),
    Case("two regions", ("are both given", "Leave one out."), ("--roi", "0:1,:,:", "--roi_nm", "0:50,:,:")),
]

LAYOUTS = [
    Case("no tile", ("tile=[0, 64, 64]: every extent",), ("--tile", "[0, 64, 64]")),
    Case("two extents", ("tile", "3 whole numbers, such as [16, 256, 256]"), ("--tile", "[64, 64]")),
    Case("a chunk below one", ("chunk=[4, -1, 4]: every extent",), ("--chunk", "[4, -1, 4]")),
    Case(
        "a shard that cuts chunks",
        ("Try shard (4, 16, 16).",),
        ("--chunk", "[2, 16, 16]", "--shard", "[3, 16, 16]"),
    ),
    Case(
        "a block that cuts shards",
        ("two tasks would write one shard and lose data. Try block=(2, 32, 16).",),
        ("--chunk", "[2, 16, 16]", "--shard", "[2, 16, 16]", "--block", "[2, 24, 16]"),
    ),
    Case(
        "shards in 0.4",
        ("shard=[2, 16, 16] with ome_zarr 0.4, which has no shards",),
        ("--ome_zarr", "0.4", "--shard", "[2, 16, 16]"),
    ),
    Case("an unknown version", ("ome_zarr", "one of 0.4, 0.5"), ("--ome_zarr", "0.6")),
    Case("an unknown dtype", ("output_dtype", "one of uint8, float16, float32"), ("--output_dtype", "uint16")),
]

SETTINGS = [
    Case("an unknown key", ("--tiles", "Did you mean --tile?"), ("--tiles", "[1, 64, 64]")),
    Case("a key cut short", ("--over", "Did you mean --overwrite?"), ("--over", "true")),
    Case("fewer workers than none", ("workers=-1 must be at least 0",), ("--workers", "-1")),
    Case("no attempt", ("attempts=0 at least 1",), ("--attempts", "0")),
    Case("three symmetries", ("symmetries", "one of 1, 4, 8"), ("--symmetries", "3")),
    Case(
        "turns of oblong voxels",
        ("symmetries=8 turns sections by 90 degrees", "Try symmetries=4"),
        ("--symmetries", "8", "--accept_mismatch", "true"),
        arrange=lambda f: put_volume(f / "oblong.zarr", grey(SHAPE), (50, 4, 8)),
        volume="oblong",
    ),
    Case(
        "no tracking server",
        ("MLflow at http://127.0.0.1:9 does not answer",),
        ("--tracking.uri", "http://127.0.0.1:9"),
    ),
    Case("no experiment", ("tracking.experiment is empty",), ("--tracking.experiment", "")),
]

OUTPUTS = [
    Case("the input", ("output=em is the input itself",), output="em"),
    Case("in the input", ("the output lies inside the input", "Give an output beside"), output="{folder}/em.zarr/p"),
    Case(
        "around the input",
        ("the input lies inside the output",),
        ("--overwrite", "true"),
        arrange=lambda f: put_volume(f / "all.zarr" / "em.zarr", grey(SHAPE)),
        volume="{folder}/all.zarr/em.zarr",
        output="{folder}/all",
    ),
    Case(
        "a file",
        ("taken.zarr is a file that tessera did not make: it would be overwritten",),
        arrange=lambda f: _write(f / "taken.zarr", b"years of work"),
        output="taken",
    ),
    Case(
        "below a file",
        ("cannot be made: ", "notes is a file. Give an output in a folder."),
        arrange=lambda f: _write(f / "notes", b"years of work"),
        output="{folder}/notes/out",
    ),
    Case(
        "someone's folder",
        ("is a folder that holds chapter1.txt that tessera did not make",),
        ("--overwrite", "true"),
        arrange=lambda f: _write(f / "thesis.zarr" / "chapter1.txt", b"years of work"),
        output="thesis",
    ),
    Case("a web server", ("web servers are read only", "s3://bucket/volume.zarr"), output="https://host/out"),
    Case("no name", ("output is not given. Try --output my-membranes.",), output=""),
]


def _refused(capsys: Capsys, folder: Path, case: Case) -> str:
    case.arrange(folder)
    volume, output = (name.format(folder=folder) for name in (case.volume, case.output))
    words = ("--volume", volume, "--model", folder.parent / "bundle", "--output", output)
    return refusal(capsys, folder.parent, "predict", *words, *case.words)


@pytest.mark.parametrize("case", [*VOLUMES, *REGIONS, *LAYOUTS, *SETTINGS, *OUTPUTS], ids=lambda case: case.name)
def test_it_is_refused_before_anything_starts_with_what_is_wrong(case: Case, folder: Path, capsys: Capsys) -> None:
    told = _refused(capsys, folder, case)
    for part in case.told:
        assert part in told


# Models


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda w: w.write_bytes(w.read_bytes()[:-100]), "weights.keras is damaged (File is not a zip file)"),
        (lambda w: w.write_bytes(b""), "weights.keras is damaged (File is not a zip file)"),
        (lambda w: w.write_bytes(w.read_bytes().replace(b"\x10\x11\x12", b"\x10\0\x12", 1)), "fails its checksum"),
        (lambda w: zipfile.ZipFile(w, "w").close(), "config.json and model.weights.h5 not in it"),
        (
            lambda w: put_weights(w.parent, filters=4),
            "holds another network than its contract says: 1 poolings, 4 filters at the first level, 1 input channels; "
            "the contract's has 1 poolings, 2 filters",
        ),
        (lambda w: put_weights(w.parent, filters=2, inputs=3), "2 filters at the first level, 3 input channels; the"),
    ],
    ids=["cut short", "empty", "a flipped byte", "without weights", "another width", "2.5D"],
)
def test_weights_that_cannot_be_the_contract_s_are_refused_without_loading_them(
    spoil: Callable[[Path], object], told: str, folder: Path, capsys: Capsys
) -> None:
    spoil(folder.parent / "bundle" / "weights.keras")
    message = _refused(capsys, folder, Case("weights", ()))
    assert told in message and "Copy " in message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": "tessera-bundle/1"}, "An earlier tessera never averaged"),
        ({"format": "tessera-bundle/9"}, "contract format 'tessera-bundle/9' is not 'tessera-bundle/2'"),
        ({"axes": "xyz"}, "the volume's axes are 'zyx', the model wants 'xyz'"),
    ],
)
def test_a_contract_of_another_version_or_axes_is_refused(
    changes: dict[str, Any], told: str, folder: Path, capsys: Capsys
) -> None:
    path = folder.parent / "bundle" / "contract.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert told in _refused(capsys, folder, Case("contract", ()))


def test_a_config_with_an_unknown_key_is_refused(folder: Path, tmp_path: Path, capsys: Capsys) -> None:
    config = tmp_path / "predict.yaml"
    config.write_text("tile: [1, 64, 64]\nbatch: 4\n")
    assert "batch" in _refused(capsys, folder, Case("config", (), ("--config", str(config))))


# Object stores


def _in_bucket(s3: S3Server) -> str:
    url = f"s3://{BUCKET}/em.zarr"
    volume = create_volume(url, SHAPE, np.uint8, voxel_size_nm=(50, 4, 4), chunk=SHAPE, shard=SHAPE)
    volume.array[:] = grey(SHAPE)
    return url


def test_object_stores_that_cannot_be_used_are_told_without_their_secrets(
    s3: S3Server, folder: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = _in_bucket(s3)
    cases = [
        (Case("no object", ("gone.zarr does not exist",), volume=f"s3://{BUCKET}/gone.zarr"), {}),
        (Case("no bucket to read", ("no-such-bucket",), volume="s3://no-such-bucket/em.zarr"), {}),
        (Case("no bucket to write", ("no-such-bucket",), output="s3://no-such-bucket/out"), {}),
        (Case("half the credentials", ("Missing SecretAccessKey",), volume=url), {"AWS_SECRET_ACCESS_KEY": None}),
        (
            Case(
                "nobody's credentials",
                ("the store refuses access", "AWS_ACCESS_KEY_ID"),
                ("--storage.anonymous", "true"),
                volume=url,
            ),
            {},
        ),
        (Case("output in the input", ("the output lies inside the input",), volume=url, output=f"{url}/p"), {}),
        (
            Case("nobody answers", ("the store cannot be used", "127.0.0.1:9"), volume=url),
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        ),
    ]
    before = s3.listing()
    for case, variables in cases:
        with monkeypatch.context() as patched:
            for name, value in variables.items():
                patched.delenv(name) if value is None else patched.setenv(name, value)
            told = _refused(capsys, folder, case)
        for part in case.told:
            assert part in told, case.name
        assert SECRET not in told
    assert s3.listing() == before
    assert open_volume(url).shape == SHAPE, "what was refused was refused for its own fault"
