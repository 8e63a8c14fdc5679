"""Tables of numbers come back as they were written, and damage is told with what to do."""

from pathlib import Path

import numpy as np
import pytest

from tessera.storage.tables import read_table, read_tables, write_table


def test_columns_come_back_with_type_and_width(tmp_path: Path) -> None:
    columns = {
        "a": np.array([1, 2**64 - 1], np.uint64),
        "mean": np.array([0.5, np.inf], np.float32),
        "histogram": np.arange(6, dtype=np.uint32).reshape(2, 3),
    }
    write_table(tmp_path / "t.parquet", columns)
    found = read_table(tmp_path / "t.parquet", list(columns))
    for name, column in columns.items():
        assert found[name].dtype == column.dtype
        np.testing.assert_array_equal(found[name], column)
    assert list(read_table(tmp_path / "t.parquet", ["mean"])) == ["mean"]


def test_no_rows_are_fine(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", {"a": np.empty(0, np.int64), "h": np.empty((0, 4), np.uint32)})
    found = read_table(tmp_path / "t.parquet", ["a", "h"])
    assert found["a"].shape == (0,) and found["h"].shape == (0, 4)


def test_files_are_read_in_order(tmp_path: Path) -> None:
    places = [tmp_path / f"{k}.parquet" for k in range(20)]
    for k, place in enumerate(places):
        write_table(place, {"a": np.array([k])})
    assert [int(found["a"][0]) for found in read_tables(places, ["a"])] == list(range(20))


def test_damage_is_told_with_what_to_do(tmp_path: Path) -> None:
    place = tmp_path / "t.parquet"
    with pytest.raises(FileNotFoundError, match=r"is missing: say --recheck true"):
        read_table(place, ["a"])
    write_table(place, {"a": np.arange(9)})
    with pytest.raises(ValueError, match=r"is damaged .*: say --recheck true"):
        read_table(place, ["b"])
    place.write_bytes(place.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"is damaged"):
        read_table(place, ["a"])
