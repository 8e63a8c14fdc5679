"""Promises about the lease: one driver per output, a dead one's place is taken, one thought dead writes no more."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from objectstore import BUCKET, S3Server
from tessera.storage.lease import Lease, LeaseLostError, OutputInUseError, sight
from tessera.storage.ledger import Ledger, LedgerRow, ledger_path, read_rows
from tessera.storage.locations import Place, place_of
from tessera.storage.objects import child_names, remove_file
from tessera.storage.removal import remove_output
from tessera.storage.volumes import create_volume

FACTS = {"workflow": "predict", "shape": [4, 8, 8], "block": [4, 8, 8]}
# A driver that opens the ledger, records a block that it never flushes, says so, and waits to be killed.
DRIVER = """
import sys, time
from tessera.storage.ledger import Ledger
ledger = Ledger.open(sys.argv[1], "key", {"workflow": "predict", "shape": [4, 8, 8], "block": [4, 8, 8]})
print("open", flush=True)
time.sleep(600)
"""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    create_volume(tmp_path / "out.zarr", (4, 8, 8), np.uint8, voxel_size_nm=None)
    return tmp_path / "out.zarr"


def _pretend(folder: Path, number: int, *, age_s: float, expiry_s: float = 60.0, **changes: object) -> None:
    """A lease of a driver on another machine, last heard of some time ago."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"lease-{number:08d}.json"
    holder = {"host": "another-machine", "world": "w", "pid": 7, "started_at": 1.0, "token": "a", "expiry_s": expiry_s}
    file.write_text(json.dumps(holder | changes))
    os.utime(file, (time.time() - age_s,) * 2)


def test_a_second_driver_is_refused_until_the_first_is_killed(output: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", DRIVER, str(output)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None and first.stdout.readline() == "open\n"
        with pytest.raises(OutputInUseError, match=rf"another driver works on this output \(process {first.pid} on"):
            Ledger.open(output, "key", FACTS)
        with pytest.raises(OutputInUseError, match=rf"in use: .*\(process {first.pid} on"):
            remove_output(output)
    finally:
        first.kill()
        first.wait()
        first.communicate()
    with Ledger.open(output, "key", FACTS) as ledger:  # at once: no process of that number and age is on this machine
        ledger.append(LedgerRow(0, "done"))
    assert [row.block for row in read_rows(output)] == [0]
    assert sight(ledger_path(output)) is None, "given back"


@pytest.mark.parametrize(("age_s", "taken"), [(1.0, False), (1.9, False), (2.5, True)])
def test_a_driver_elsewhere_counts_as_dead_only_after_the_expiry(tmp_path: Path, age_s: float, taken: bool) -> None:
    _pretend(tmp_path, 3, age_s=age_s, expiry_s=2.05)
    if not taken:
        with pytest.raises(OutputInUseError, match=r"process 7 on another-machine, last sign of life \d s ago.*2 s"):
            Lease.take(tmp_path, expiry_s=60.0)
        return
    lease = Lease.take(tmp_path, expiry_s=60.0)
    assert [path.name for path in tmp_path.iterdir()] == ["lease-00000004.json"]
    lease.release()


def test_a_driver_that_lives_is_never_thought_dead(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, expiry_s=0.4)
    deadline = time.monotonic() + 1.2
    while time.monotonic() < deadline:
        seen = sight(tmp_path)
        assert seen is not None and seen.holder is not None and seen.holder.pid == os.getpid()
        time.sleep(0.1)
    seen = sight(tmp_path)
    assert seen is not None and seen.age_s < 1.0, "it showed signs of life"
    lease.release()


def test_a_driver_that_was_thought_dead_writes_no_more(output: Path) -> None:
    ledger = Ledger.open(output, "key", FACTS)
    ledger.append(LedgerRow(0, "done"))
    _pretend(ledger_path(output), 2, age_s=0.0)
    with pytest.raises(LeaseLostError, match=r"no longer this driver's: process 7 on another-machine, .* took it over"):
        ledger.close()
    assert list(read_rows(output)) == []
    assert sight(ledger_path(output)) is not None, "the successor's lease is left alone"


def test_a_driver_hears_that_it_was_replaced_without_a_commit_of_its_own(output: Path) -> None:
    ledger = Ledger.open(output, "key", FACTS, lease_expiry_s=0.4)
    _pretend(ledger_path(output), 2, age_s=0.0)
    deadline = time.monotonic() + 10
    with pytest.raises(LeaseLostError, match=r"process 7 on another-machine, .* took it over.*This job stops"):
        while time.monotonic() < deadline:
            ledger.check_driver()
            time.sleep(0.02)
    with pytest.raises(LeaseLostError, match="took it over"):
        ledger.append(LedgerRow(0, "done"))
    ledger.close()


def test_a_sign_of_life_does_not_bring_a_removed_lease_back(output: Path, s3: S3Server) -> None:
    for folder in (output.parent / "l", place_of(f"s3://{BUCKET}/l.ledger")):
        lease = Lease.take(folder, expiry_s=0.4)
        (file,) = (folder / name for name in child_names(folder))
        remove_file(file)
        time.sleep(0.5)
        assert child_names(folder) == []
        with pytest.raises(LeaseLostError, match="removed meanwhile"):
            lease.check()
        lease.release()


def test_a_holder_is_judged_by_the_expiry_that_it_announced(tmp_path: Path) -> None:
    """One that shows a sign of life every 15 s is not dead to a newcomer that would show one every half second."""
    _pretend(tmp_path, 1, age_s=30.0, expiry_s=60.0)
    with pytest.raises(OutputInUseError, match=r"60 s after its last sign of life the same command takes over"):
        Lease.take(tmp_path, expiry_s=2.0)


def test_a_process_of_the_same_number_in_another_container_is_not_taken_for_gone(tmp_path: Path) -> None:
    _pretend(tmp_path, 1, age_s=0.0, host=socket.gethostname(), world="another boot pid:[1]")
    with pytest.raises(OutputInUseError, match="process 7 on"):
        Lease.take(tmp_path)


def test_of_two_who_overwrite_at_once_one_is_refused_before_it_touches_anything(output: Path) -> None:
    with Lease.take(ledger_path(output)) as lease:
        before = sorted(output.parent.rglob("*"))
        with pytest.raises(OutputInUseError, match="another driver works on this output"):
            remove_output(output)
        assert sorted(output.parent.rglob("*")) == before
        remove_output(output, lease)
        lease.check()
        assert not output.exists()
    assert list(output.parent.iterdir()) == []


def test_a_lease_of_the_same_number_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path)
    _pretend(tmp_path, 1, age_s=0.0)
    with pytest.raises(LeaseLostError, match="took it over"):
        lease.check()
    lease.release()
    assert sight(tmp_path) is not None


def test_an_output_removed_under_its_driver_is_told(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path / "gone")
    (tmp_path / "gone" / "lease-00000001.json").unlink()
    with pytest.raises(LeaseLostError, match="it was removed meanwhile"):
        lease.check()
    lease.release()


def test_a_torn_lease_holds_until_it_expires(tmp_path: Path) -> None:
    torn = tmp_path / "lease-00000001.json"
    torn.write_text("{")
    with pytest.raises(OutputInUseError, match="a process that cannot be named"):
        Lease.take(tmp_path, expiry_s=5.0)
    os.utime(torn, (time.time() - 61,) * 2)
    Lease.take(tmp_path, expiry_s=5.0).release()


def test_of_those_who_begin_at_once_one_holds(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def attempt(_: int) -> Lease | None:
        try:
            return Lease.take(tmp_path)
        except OutputInUseError:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = [lease for lease in pool.map(attempt, range(8)) if lease]
    assert len(won) == 1
    won[0].check()
    won[0].release()


def test_in_an_object_store_too_one_driver_holds(s3: S3Server) -> None:
    folder: Place = place_of(f"s3://{BUCKET}/leased.zarr.ledger")
    lease = Lease.take(folder, expiry_s=4.0)
    with pytest.raises(OutputInUseError, match=rf"process {os.getpid()} on"):
        Lease.take(folder, expiry_s=4.0)
    time.sleep(1.5)  # a sign of life is a write there
    lease.check()
    lease.release()
    assert sight(folder) is None
    Lease.take(folder).release()
