"""From object store to object store, on Ray: the voxels of a local run, and no secret told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from bundles import make_bundle
from objectstore import BUCKET, KEY_ID, SECRET, S3Server
from terminal import tessera
from tessera.storage.ledger import read_rows
from tessera.storage.volumes import open_volume
from volumes import grey, mask

SHAPE = (2, 64, 96)
LAYOUT = ("--shard", "[2, 32, 32]", "--chunk", "[2, 16, 16]")
SIZE = ("--voxel_size_nm", "[50, 4, 4]")


def _all_commands(capsys: pytest.CaptureFixture[str], where: str, sources: Path, bundle: Path, *engine: str) -> str:
    """Ingest, predict, segment, pyramid and evaluate; returns all that was printed."""
    anonymous = ("--storage.anonymous", "true") if where.startswith("s3://") else ()
    raw, truth, membranes, cells = (f"{where}/{name}.zarr" for name in ("raw", "truth", "p", "cells"))
    labels = ("--source", sources / "labels.tif", "--kind", "labels", "--output", truth)
    commands = (
        ("ingest", "--source", sources / "raw.tif", "--output", raw, *SIZE, *LAYOUT, *engine),
        ("ingest", *labels, *SIZE, *engine),
        ("predict", "--volume", raw, "--model", bundle, "--output", membranes, *LAYOUT, *anonymous, *engine),
        ("segment", "--volume", membranes, "--output", cells, *LAYOUT, *engine),
        ("pyramid", "--volume", membranes, "--levels", "2", "--engine", "serial"),
        ("evaluate", "--volume", membranes, "--labels", truth, "--cells", cells),
    )
    told = ""
    for words in commands:
        answer = tessera(capsys, *words)
        assert answer.code == 0, answer.err
        told += answer.out + answer.err
    return told


@pytest.mark.usefixtures("ray_session")
def test_every_command_works_from_s3_to_s3_with_the_voxels_of_a_local_run(
    s3: S3Server, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tessera.workflows import predict as workflow

    tifffile.imwrite(tmp_path / "raw.tif", grey(SHAPE), photometric="minisblack")
    tifffile.imwrite(tmp_path / "labels.tif", mask(SHAPE), photometric="minisblack")
    bundle = make_bundle(tmp_path / "b")
    real = workflow.find_raw

    def published(*words: object) -> object:
        s3.publish("raw.zarr")
        return real(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(workflow, "find_raw", published)
    url = f"s3://{BUCKET}"
    told = _all_commands(capsys, url, tmp_path, bundle, "--workers", "1")
    _all_commands(capsys, str(tmp_path), tmp_path, bundle, "--engine", "serial")

    for name, level in (("raw", 0), ("truth", 0), ("cells", 0), ("p", 0), ("p", 1), ("p", 2)):
        there, here = (open_volume(f"{root}/{name}.zarr", level=level) for root in (url, tmp_path))
        apart = np.abs(there.array[:].astype(np.int64) - here.array[:].astype(np.int64)).max()
        assert apart <= (1 if name == "p" else 0), name
        assert there.attributes["complete"] is True
        assert there.array[:].any()
    assert len({row.block for row in read_rows(f"{url}/p.zarr")}) == 6
    stored = b"".join(s3.get(key) for key in s3.listing()) + told.encode()
    stored += b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    for secret in (KEY_ID, SECRET):
        assert secret.encode() not in stored
