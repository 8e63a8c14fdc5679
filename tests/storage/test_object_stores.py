"""Promises about volumes in object stores, kept against a real S3 server: the same as on a disk, and no secret told."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import ObjectStore

from objectstore import BUCKET, KEY_ID, SECRET, S3Server
from tessera.geometry.boxes import Box
from tessera.storage.arrays import load_arrays, save_arrays
from tessera.storage.identity import identity
from tessera.storage.ledger import Ledger, LedgerRow, ledger_path, read_rows
from tessera.storage.locations import place_of
from tessera.storage.objects import backing_store, create_bytes, read_bytes
from tessera.storage.removal import remove_output
from tessera.storage.volumes import Volume, create_volume, open_volume, update_attributes

SHAPE, CHUNK, SHARD = (5, 20, 21), (2, 4, 4), (4, 8, 8)
VOXELS = np.random.default_rng(0).integers(1, 256, SHAPE, dtype=np.uint8)
WHOLE = Box.whole(SHAPE)
URL = f"s3://{BUCKET}/em/raw.zarr"


def make(url: str = URL, **changes: Any) -> Volume:
    options = {"voxel_size_nm": (50, 4, 4), "chunk": CHUNK, "shard": SHARD} | changes
    return create_volume(url, SHAPE, np.uint8, **options)


def written(url: str = URL, **changes: Any) -> Volume:
    volume = make(url, **changes)
    volume.write(WHOLE, VOXELS)
    return volume


def test_what_is_written_reads_back_and_travels_without_credentials(s3: S3Server) -> None:
    sent = pickle.dumps(written(attributes={"kind": "image"}))
    assert KEY_ID.encode() not in sent and SECRET.encode() not in sent
    for volume in (open_volume(URL), pickle.loads(sent)):
        assert (volume.url, volume.shape, volume.voxel_size_nm) == (URL, SHAPE, (50.0, 4.0, 4.0))
        assert volume.attributes["kind"] == "image"
        np.testing.assert_array_equal(volume.read(WHOLE), VOXELS)


@pytest.mark.parametrize("version", [2, 3])
def test_a_plain_array_is_read_and_its_voxel_size_given(s3: S3Server, version: int) -> None:
    store = ObjectStore(backing_store(place_of(f"s3://{BUCKET}/plain")))  # type: ignore[arg-type]
    zarr.create_array(store, shape=SHAPE, chunks=CHUNK, dtype="u1", zarr_format=version)[:] = VOXELS  # type: ignore[arg-type]
    volume = open_volume(f"s3://{BUCKET}/plain", voxel_size_nm=(50, 4, 4))
    assert volume.voxel_size_nm == (50.0, 4.0, 4.0)
    np.testing.assert_array_equal(volume.read(WHOLE), VOXELS)


def test_a_public_volume_is_read_without_credentials_and_a_private_one_is_not(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    written()
    written(f"s3://{BUCKET}/private.zarr")
    s3.publish("em/")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    volume = open_volume(place_of(URL, anonymous=True))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).read(WHOLE), VOXELS)
    assert identity(volume) == identity(open_volume(place_of(URL, anonymous=True)))
    with pytest.raises(PermissionError, match=r"refuses access .*403.*Check AWS_ACCESS_KEY_ID"):
        open_volume(place_of(f"s3://{BUCKET}/private.zarr", anonymous=True))


def test_a_volume_on_a_web_server_is_read(s3: S3Server) -> None:
    written()
    s3.publish("em/")
    volume = open_volume(f"{s3.endpoint}/{BUCKET}/em/raw.zarr")
    np.testing.assert_array_equal(volume.read(WHOLE), VOXELS)
    assert len(identity(volume)) == 64


def test_without_credentials_the_message_says_how_to_give_them(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    written()
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(OSError, match="Missing SecretAccessKey"):
        open_volume(URL)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    with pytest.raises(PermissionError, match=r"for a public bucket say `--storage.anonymous true`"):
        open_volume(URL)


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        (f"s3://{BUCKET}/gone.zarr", FileNotFoundError, "gone.zarr does not exist: give the URL of a Zarr volume"),
        (f"s3://{BUCKET}/em", ValueError, f"is a folder that holds raw.zarr.*Did you mean s3://{BUCKET}/em/raw.zarr"),
        (f"s3://{BUCKET}/em/raw.zarr/zarr.json", ValueError, "is one object, not a Zarr volume"),
        ("s3://no-such-bucket/a.zarr", OSError, "no-such-bucket.*(NoSuchBucket|404)"),
    ],
)
def test_what_is_no_volume_is_refused_with_what_is_there(
    s3: S3Server, url: str, error: type[Exception], message: str
) -> None:
    make()
    with pytest.raises(error, match=message):
        open_volume(url)


def test_a_store_that_does_not_answer_is_an_error_of_one_line(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"raw.zarr/zarr.json: the store cannot be used: .*127.0.0.1:9") as told:
        open_volume(URL)
    assert "\n" not in str(told.value) and SECRET not in str(told.value)


# Writing


@pytest.mark.parametrize("ome_zarr", ["0.4", "0.5"])
def test_a_volume_is_created_once_and_reopened_with_its_voxels(s3: S3Server, ome_zarr: Any) -> None:
    options = {"ome_zarr": ome_zarr, "shard": SHARD if ome_zarr == "0.5" else None}
    first = written(**options)
    again = make(**options, exist_ok=True)
    assert again.attributes["id"] == first.attributes["id"]
    np.testing.assert_array_equal(again.read(WHOLE), VOXELS)
    with pytest.raises(FileExistsError, match="is a volume that tessera made"):
        make(**options)
    other: dict[str, Any] = {"ome_zarr": "0.4", "shard": None} if ome_zarr == "0.5" else {}
    with pytest.raises(FileExistsError, match=r"zarr_format .*, not .*two jobs' results would be mixed"):
        make(**other, exist_ok=True)


def test_of_two_creations_at_once_one_succeeds(s3: S3Server) -> None:
    barrier, answers = threading.Barrier(2), []

    def create() -> None:
        barrier.wait()
        try:
            answers.append(make().attributes["id"])
        except FileExistsError as error:
            answers.append(error)

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [answer for answer in answers if isinstance(answer, str)]
    assert len(ids) == 1 and open_volume(URL).attributes["id"] == ids[0]


def test_a_creation_that_was_killed_goes_on_and_another_volume_does_not_take_its_place(s3: S3Server) -> None:
    make()
    s3.client.delete_object(Bucket=BUCKET, Key="em/raw.zarr/zarr.json")
    with pytest.raises(FileExistsError, match="created by another process"):
        make(chunk=(1, 4, 4))
    np.testing.assert_array_equal(written().read(WHOLE), VOXELS)


def test_what_tessera_did_not_make_is_neither_overwritten_nor_removed(s3: S3Server) -> None:
    s3.client.put_object(Bucket=BUCKET, Key="em/raw.zarr/thesis.txt", Body=b"x")
    with pytest.raises(FileExistsError, match=r"holds thesis.txt but no volume of tessera's"):
        make()
    with pytest.raises(FileExistsError, match=r"holds thesis.txt that tessera did not make"):
        remove_output(URL)
    assert s3.listing() == ["em/raw.zarr/thesis.txt"]


def test_an_object_is_created_once(s3: S3Server) -> None:
    place = place_of(f"s3://{BUCKET}/a/b")
    create_bytes(place, b"first")  # type: ignore[arg-type]
    with pytest.raises(FileExistsError, match="a/b is already there"):
        create_bytes(place, b"second")  # type: ignore[arg-type]
    assert read_bytes(place) == b"first"


def test_attributes_change_in_one_object_and_hold_no_secret(s3: S3Server) -> None:
    make(attributes={"run": "r1"})
    update_attributes(URL, threshold=0.4)
    attributes = open_volume(URL).attributes
    assert (attributes["run"], attributes["threshold"]) == ("r1", 0.4)
    assert all(KEY_ID not in s3.get(key).decode("latin1") for key in s3.listing())


def test_faces_are_kept_beside_the_output(s3: S3Server) -> None:
    place = ledger_path(URL) / "faces" / "faces-0.npz"
    save_arrays(place, {"a": VOXELS})
    np.testing.assert_array_equal(load_arrays(place)["a"], VOXELS)
    with pytest.raises(FileNotFoundError, match=r"faces-1.npz is missing: say --recheck true"):
        load_arrays(ledger_path(URL) / "faces" / "faces-1.npz")


# The ledger


def test_a_ledger_resumes_and_refuses_another_job(s3: S3Server) -> None:
    make()
    with Ledger.open(URL, "k1", {"tile": 1}, flush_rows=2) as ledger:
        for block in range(3):
            ledger.append(LedgerRow(block, "done"))
    with Ledger.open(URL, "k1", {"tile": 1}) as ledger:
        assert ledger.done() == {0, 1, 2}
        ledger.append(LedgerRow(3, "failed", error="x"))
    assert [row.block for row in read_rows(URL)] == [0, 1, 2, 3]
    assert len([key for key in s3.listing("em/raw.zarr.ledger/") if "part-" in key]) == 3
    with pytest.raises(ValueError, match="another job: tile was 1, now 2"):
        Ledger.open(URL, "k2", {"tile": 2})
    assert json.loads(s3.get("em/raw.zarr.ledger/job.json"))["key"] == "k1"


def test_an_output_of_ours_is_removed_with_its_ledger_and_nothing_else(s3: S3Server) -> None:
    written()
    written(f"s3://{BUCKET}/em/raw.zarr2")
    Ledger.open(URL, "k1", {}, stage="faces").close()
    remove_output(URL)
    assert {key.split("/")[1] for key in s3.listing()} == {"raw.zarr2"}
    remove_output(URL)


# Identity


def test_an_identity_changes_with_an_object_and_the_url(s3: S3Server) -> None:
    written()
    seen = [identity(open_volume(URL))]
    assert identity(open_volume(URL)) == seen[0]
    update_attributes(URL, run="r1")
    assert identity(open_volume(URL)) == seen[0], "lineage may be added"
    changed = VOXELS.copy()
    changed[0, 0, 0] ^= 1
    open_volume(URL, writable=True).write(WHOLE, changed)
    seen.append(identity(open_volume(URL)))
    written(f"s3://{BUCKET}/em/copy.zarr")
    seen.append(identity(open_volume(f"s3://{BUCKET}/em/copy.zarr")))
    s3.client.delete_object(Bucket=BUCKET, Key="em/raw.zarr/0/c/1/2/2")
    seen.append(identity(open_volume(URL)))
    assert len(set(seen)) == 4


def test_an_object_store_volume_equals_the_local_one(s3: S3Server, tmp_path: Path) -> None:
    written()
    local = create_volume(tmp_path / "raw.zarr", SHAPE, np.uint8, voxel_size_nm=(50, 4, 4), chunk=CHUNK, shard=SHARD)
    local.write(WHOLE, VOXELS)
    files = [path for path in (tmp_path / "raw.zarr").rglob("*") if path.is_file() and path.name != "zarr.json"]
    assert files
    for path in files:
        assert s3.get(f"em/raw.zarr/{path.relative_to(tmp_path / 'raw.zarr')}") == path.read_bytes()
