"""What a server may read of a volume: its own files, whole or in part, and nothing beside them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from objectstore import BUCKET, S3Server
from tessera.storage.locations import place_of
from tessera.storage.ranges import StoredFile, file_below, opened

CONTENT = bytes(range(256)) * 5000  # more than one piece


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A volume between files that are nobody's business."""
    folder = tmp_path / "lab" / "v.zarr"
    (folder / "0" / "c").mkdir(parents=True)
    (tmp_path / "lab" / "secret").write_text("secret")
    (tmp_path / "lab" / "v.zarr-other").write_text("secret")
    for name in ("zarr.json", ".zattrs", ".hidden.tmp", "0/c/0", "a:b"):
        (folder / name).write_bytes(CONTENT)
    (folder / "out").symlink_to(tmp_path / "lab" / "secret")
    (folder / "up").symlink_to(tmp_path / "lab")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "inside").symlink_to(folder / "0")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.mark.parametrize("key", ["zarr.json", ".zattrs", "0/c/0", "inside/c/0"])
def test_files_of_the_volume_are_found(root: Path, key: str) -> None:
    assert file_below(root, key) == (root / key).resolve()


@pytest.mark.parametrize(
    "key",
    [
        *("../secret", "0/../../secret", "..", ".", "", "/", "0/", "0", "0//c/0", "//secret", "0/./c/0", "..\\secret"),
        *("../v.zarr-other", "../v.zarr/zarr.json", "out", "up/secret", "circle", "pipe", ".hidden.tmp", "a:b", "gone"),
        *("zarr.json\0", "zarr.json\n", "x" * 5000, "%2e%2e/secret"),
    ],
)
def test_everything_else_is_not_there(root: Path, key: str) -> None:
    assert file_below(root, key) is None


def test_an_absolute_name_stays_below_the_volume(root: Path, tmp_path: Path) -> None:
    assert file_below(root, str(tmp_path / "lab" / "secret")) is None
    assert file_below(root, "/etc/passwd") is None


def test_a_volume_reached_through_a_link_is_read(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link.zarr").symlink_to(root)
    assert file_below(tmp_path / "link.zarr", "zarr.json") == (root / "zarr.json").resolve()


def _check_reads(file: StoredFile) -> None:
    assert file.size == len(CONTENT)
    assert b"".join(file.pieces(0, file.size)) == CONTENT
    assert b"".join(file.pieces(1000, 1007)) == CONTENT[1000:1007]
    assert [len(piece) for piece in file.pieces(1, 2**20 + 2)] == [2**20, 1]


def test_parts_of_a_file_are_read_in_pieces(root: Path) -> None:
    with opened(root / "zarr.json") as file:
        _check_reads(file)


def test_a_file_that_shrinks_under_the_reader_is_an_error_and_not_a_short_answer(root: Path) -> None:
    with opened(root / "zarr.json") as file:
        os.truncate(root / "zarr.json", 10)
        with pytest.raises(OSError, match="ends before byte 100: it was cut while it was read"):
            list(file.pieces(0, 100))


def test_an_object_is_read_as_a_file_is_and_none_outside_the_prefix(s3: S3Server) -> None:
    s3.client.put_object(Bucket=BUCKET, Key="em/v.zarr/zarr.json", Body=CONTENT)
    s3.client.put_object(Bucket=BUCKET, Key="em/secret", Body=b"secret")
    root = place_of(f"s3://{BUCKET}/em/v.zarr")
    found = file_below(root, "zarr.json")
    assert found is not None
    with opened(found) as file:
        _check_reads(file)
    assert file_below(root, "../secret") is None
    missing = file_below(root, "0/c/0")
    assert missing is not None
    with pytest.raises(FileNotFoundError, match="0/c/0 is not there"), opened(missing):
        pass
