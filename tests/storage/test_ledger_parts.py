"""Promises about the merging of parts: no row is lost, doubled or reordered, whoever is killed or looks on."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectstore import BUCKET, S3Server
from tessera.storage import ledger as ledger_module
from tessera.storage import ledger_parts
from tessera.storage.lease import Lease, LeaseLostError
from tessera.storage.ledger import Ledger, LedgerRow, ledger_path, read_rows
from tessera.storage.ledger_parts import FAN, list_parts, merged_parts, new_part, read_snapshot, run_to_merge
from tessera.storage.ledger_rows import encode_rows
from tessera.storage.ledger_states import read_states
from tessera.storage.locations import place_of
from tessera.storage.objects import child_names, write_new

FACTS = {"workflow": "predict", "shape": [4, 8, 80], "block": [4, 8, 8]}


def begin(output: Path | str, lease: Lease | None = None, flush_rows: int = 10_000) -> Ledger:
    return Ledger.open(output, "key", FACTS, lease=lease, flush_rows=flush_rows)


def blocks(output: Path | str) -> list[int]:
    return [row.block for row in read_rows(output)]


@pytest.fixture
def three_become_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_parts, "FAN", 3)


ROW = st.tuples(st.just("append"), st.integers(0, 9), st.sampled_from(["done", "failed", "missing"]))
DEED = ROW | st.sampled_from([("flush",), ("kill",), ("kill while merging",), ("reopen",)])


@settings(max_examples=40)
@given(st.lists(DEED, max_size=40))
def test_any_interleaving_leaves_the_latest_durable_row_of_each_block(
    tmp_path_factory: pytest.TempPathFactory, deeds: list[tuple[str, ...]]
) -> None:
    """A kill leaves what is on disk then; one while merging leaves the merged parts beside their merge."""
    folder = tmp_path_factory.mktemp("ledger")
    lives, durable, waiting = 0, list[tuple[int, str]](), list[tuple[int, str]]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger_parts, "FAN", 3)
        ledger = begin(folder / "0.zarr")
        for deed, *row in deeds:
            if deed == "append":
                ledger.append(LedgerRow(int(row[0]), row[1], error="" if row[1] == "done" else f"e{row[0]}"))  # type: ignore[arg-type]
                waiting.append((int(row[0]), row[1]))
                continue
            if deed in ("flush", "kill while merging"):
                with pytest.MonkeyPatch.context() as killed:
                    if deed != "flush":
                        killed.setattr(ledger_module, "remove_file", lambda place: None)
                    ledger.flush()
            if deed.startswith("kill"):
                lives += 1
                shutil.copytree(ledger_path(folder / f"{lives - 1}.zarr"), ledger_path(folder / f"{lives}.zarr"))
                for lease in ledger_path(folder / f"{lives}.zarr").glob("lease-*"):
                    lease.unlink()
            durable, waiting = (durable, []) if deed == "kill" else (durable + waiting, [])
            if deed != "flush":
                ledger.close()
                ledger = begin(folder / f"{lives}.zarr")
            _assert_says(ledger, folder / f"{lives}.zarr", durable)
        ledger.close()


def _assert_says(ledger: Ledger, output: Path, durable: list[tuple[int, str]]) -> None:
    latest = dict(durable)
    done, failed = ({b for b, s in latest.items() if s == status} for status in ("done", "failed"))
    assert (ledger.done(), set(ledger.failed())) == (done, failed)
    assert list(ledger.to_do(10)) == [b for b in range(10) if b not in done | failed]
    assert [(row.block, row.status) for row in read_rows(output)] == durable
    states = read_states(output)
    assert set(states.block[states.done].tolist()) == done and set(states.errors) == failed


def test_many_small_parts_become_few_and_rows_stay_as_they_were(tmp_path: Path) -> None:
    with begin(tmp_path / "out.zarr", flush_rows=1) as ledger:
        for block in range(10 * FAN):
            ledger.append(LedgerRow(block, "done", checksum=f"{block}"))
        assert len(list_parts(ledger_path(tmp_path / "out.zarr"))) < FAN
    assert [(row.block, row.checksum) for row in read_rows(tmp_path / "out.zarr")] == [
        (block, f"{block}") for block in range(10 * FAN)
    ]
    with begin(tmp_path / "out.zarr") as ledger:
        assert ledger.done() == set(range(10 * FAN))


def test_parts_of_any_sizes_stay_few_and_a_row_is_rewritten_a_few_times_only() -> None:
    sizes, written = list[int](), 0
    for flush in range(20_000):
        sizes.append(1 + flush * 7919 % 120)
        run = run_to_merge(sizes)
        if run:
            merged = sum(sizes[-run:])
            sizes[-run:] = [merged]
            written += merged
        assert len(sizes) < 4 * FAN
    assert written <= 4 * sum(sizes)


def test_in_an_object_store_parts_are_merged_too(s3: S3Server, three_become_one: None) -> None:
    output = f"s3://{BUCKET}/merged.zarr"
    with begin(output, flush_rows=1) as ledger:
        for block in range(7):
            ledger.append(LedgerRow(block, "done"))
    names = [name for name in child_names(ledger_path(output)) if name.startswith("part")]
    assert len(names) <= 3 and blocks(output) == list(range(7))
    with begin(output) as ledger:
        assert ledger.done() == set(range(7))


def test_parts_that_a_kill_left_beside_their_merge_are_passed_over_and_removed(
    tmp_path: Path, three_become_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, folder = tmp_path / "out.zarr", ledger_path(tmp_path / "out.zarr")
    with monkeypatch.context() as killed:
        killed.setattr(ledger_module, "remove_file", lambda place: None)
        with begin(output, flush_rows=1) as ledger:
            for block in range(3):
                ledger.append(LedgerRow(block, "done"))
    assert len(list_parts(folder)) == 1 and len(merged_parts(folder)) == 3
    assert blocks(output) == [0, 1, 2]
    with begin(output) as ledger:
        assert ledger.done() == {0, 1, 2}
    assert merged_parts(folder) == [] and len(list(folder.glob("part-*"))) == 1


def test_two_merges_of_the_same_parts_count_once(tmp_path: Path) -> None:
    """A driver that was thought dead may finish its merge after its successor's."""
    folder = tmp_path / "l"
    rows = [LedgerRow(block, "done") for block in range(3)]
    for first, last in ((0, 2), (0, 2), (0, 1), (2, 2)):
        write_new(new_part(folder, first, last).place, encode_rows(rows[first : last + 1]))
    write_new(new_part(folder, 3).place, encode_rows([LedgerRow(3, "done")]))
    assert [(part.first, part.last) for part in list_parts(folder)] == [(0, 2), (3, 3)]
    assert len(merged_parts(folder)) == 3


def test_a_merge_that_cannot_be_written_changes_nothing_and_the_job_goes_on(
    tmp_path: Path, three_become_one: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with begin(tmp_path / "out.zarr", flush_rows=1) as ledger:
        with monkeypatch.context() as patch:
            patch.setattr(ledger_parts, "write_new", full)
            for block in range(4):
                ledger.append(LedgerRow(block, "done"))
        assert "parts could not be merged, and stay as they are" in caplog.text
        assert blocks(tmp_path / "out.zarr") == [0, 1, 2, 3]
        ledger.append(LedgerRow(4, "done"))
    assert len(list_parts(ledger_path(tmp_path / "out.zarr"))) == 1
    assert blocks(tmp_path / "out.zarr") == [0, 1, 2, 3, 4]


def test_one_thought_dead_in_the_midst_of_a_merge_removes_nothing(
    tmp_path: Path, three_become_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, folder = tmp_path / "out.zarr", ledger_path(tmp_path / "out.zarr")
    real = ledger_parts.write_merged

    def taken_over_meanwhile(*arguments: object) -> object:
        (folder / "lease-00000009.json").write_text("{}")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ledger_module, "write_merged", taken_over_meanwhile)
    ledger = begin(output, flush_rows=1)
    ledger.append(LedgerRow(0, "done"))
    ledger.append(LedgerRow(1, "done"))
    with pytest.raises(LeaseLostError, match="took it over"):
        ledger.append(LedgerRow(2, "done"))
    assert len(list(folder.glob("part-*"))) == 4 and blocks(output) == [0, 1, 2]
    ledger.close()


def test_whoever_looks_on_sees_every_committed_row_once(tmp_path: Path, three_become_one: None) -> None:
    output, folder, over = tmp_path / "out.zarr", ledger_path(tmp_path / "out.zarr"), threading.Event()
    seen, wrong = [0], list[str]()

    def look() -> None:
        while not over.is_set():
            try:
                by_column = sum(table.num_rows for table in read_snapshot(folder, ("block",)))
                by_row = blocks(output)
            except (OSError, ValueError) as error:
                wrong.append(repr(error))
                return
            if by_row != list(range(len(by_row))) or not seen[-1] <= by_column <= len(by_row):
                wrong.append(f"{seen[-1]} {by_column} {by_row}")
            seen.append(len(by_row))

    with begin(output, flush_rows=1) as ledger:
        ledger.append(LedgerRow(0, "done"))
        onlooker = threading.Thread(target=look)
        onlooker.start()
        for block in range(1, 150):
            ledger.append(LedgerRow(block, "done"))
        over.set()
        onlooker.join()
    assert not wrong and max(seen) > 1


def test_a_place_in_a_store_lists_its_parts(s3: S3Server) -> None:
    folder = place_of(f"s3://{BUCKET}/some.ledger")
    assert list_parts(folder) == [] and read_snapshot(folder, ("block",)) == []
