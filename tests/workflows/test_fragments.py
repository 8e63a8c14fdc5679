"""Watershed and agglomeration as a job: blocks change next to nothing, and another threshold cuts nothing again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from oracles import same_up_to_renaming
from tessera.images.quantise import encode
from tessera.labels.region_graph import COLUMNS, contacts_of
from tessera.settings.segment import AgglomerationSettings, SegmentSettings, WatershedSettings
from tessera.storage.ledger import read_rows
from tessera.storage.ledger_states import stages_of
from tessera.storage.volumes import open_volume
from tessera.workflows import fragments as workflow
from tessera.workflows.fragments import load_graph, load_sizes
from tessera.workflows.predict import KIND
from tessera.workflows.segment import segment
from volumes import put_volume, walls

SHAPE = (3, 128, 160)
LAYOUT: dict[str, Any] = {"chunk": (1, 64, 64), "shard": (1, 64, 64), "engine": "serial", "threshold": 0.5}
STAGES = ("faces", "seams", "graph")
CUT = WatershedSettings(halo_px=48)


@pytest.fixture
def probability(home: Path) -> Path:
    return put_volume(home / "p.zarr", encode(walls(SHAPE), "uint8"), kind=KIND)


def cells(probability: Path, name: str, **changes: Any) -> Path:
    settings = {"method": "watershed", "watershed": CUT, **LAYOUT, **changes}
    return Path(str(segment(SegmentSettings(str(probability), str(probability.with_name(name)), **settings))))


def voxels(path: Path) -> NDArray[Any]:
    found: NDArray[Any] = open_volume(path).array[:]
    return found


def test_blocks_give_the_fragments_graph_and_cells_of_the_whole_volume(probability: Path, home: Path) -> None:
    pieces = cells(probability, "pieces.zarr")
    whole = cells(probability, "whole.zarr", chunk=SHAPE, shard=SHAPE)
    for name in ("pieces-fragments", "pieces"):
        ours, theirs = voxels(home / f"{name}.zarr"), voxels(home / f"{name.replace('pieces', 'whole')}.zarr")
        ids = np.unique(ours)
        assert ids.tolist() == list(range(1, len(ids) + 1)) and len(ids) > 8, name
        _, counts = np.unique(np.stack([ours.ravel(), theirs.ravel()]), axis=1, return_counts=True)
        assert np.sort(counts)[::-1][: len(ids)].sum() >= 0.999 * ours.size, name
    attributes = open_volume(pieces).attributes
    assert attributes["complete"] is True and attributes["kind"] == "cells"
    assert (
        attributes["cells"]
        == voxels(pieces).max()
        < attributes["fragments_merged"]
        == voxels(home / "pieces-fragments.zarr").max()
    )
    assert open_volume(whole).attributes["agglomeration"]["per_section"] is True


def test_the_stored_graph_is_that_of_the_fragments(probability: Path, home: Path) -> None:
    cells(probability, "cells.zarr")
    output = home / "cells-fragments.zarr"
    made = voxels(output)
    graph, expected = load_graph(output, 18), contacts_of(made, voxels(probability), made.shape)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(graph, name), getattr(expected, name), name)
    assert load_sizes(output, 18, int(made.max())).tolist() == np.bincount(made.ravel().astype(int)).tolist()


def test_another_threshold_reads_fragments_and_graph_alone(
    probability: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cells(probability, "first.zarr", agglomeration=AgglomerationSettings(0.5))
    fragments = home / "first-fragments.zarr"
    rows = {stage: len(list(read_rows(fragments, stage=stage))) for stage in stages_of(fragments)}
    monkeypatch.setattr(workflow, "fragments_of", None)
    monkeypatch.setattr(workflow, "contacts_of", None)
    shared: dict[str, Any] = {"fragments": str(fragments)}
    none = cells(probability, "none.zarr", agglomeration=AgglomerationSettings(0.0), **shared)
    again = cells(probability, "again.zarr", agglomeration=AgglomerationSettings(0.5), **shared)
    assert same_up_to_renaming(voxels(none), voxels(fragments))
    np.testing.assert_array_equal(voxels(again), voxels(first))
    assert len(np.unique(voxels(first))) < len(np.unique(voxels(fragments)))
    assert rows == {stage: len(list(read_rows(fragments, stage=stage))) for stage in stages_of(fragments)}
    assert not (home / "none-fragments.zarr").exists()


def test_overwriting_an_output_leaves_fragments_that_others_share(probability: Path, home: Path) -> None:
    cells(probability, "first.zarr")
    fragments = home / "first-fragments.zarr"
    before = open_volume(fragments).attributes["id"]
    cells(probability, "second.zarr", fragments=str(fragments))
    cells(probability, "second.zarr", fragments=str(fragments), overwrite=True)
    cells(probability, "first.zarr", overwrite=True)
    assert open_volume(fragments).attributes["id"] == before
    other = WatershedSettings(smoothing_nm=20.0, halo_px=48)
    with pytest.raises(ValueError, match=r"belongs to another job: watershed.smoothing was 8.0, now 20.0"):
        cells(probability, "second.zarr", fragments=str(fragments), watershed=other, overwrite=True)
    cells(probability, "first.zarr", watershed=other, overwrite=True)
    assert open_volume(fragments).attributes["id"] != before


def test_fragments_through_the_volume_cross_sections(home: Path) -> None:
    membrane = put_volume(home / "iso.zarr", encode(walls((24, 64, 70), (5, 5, 5)), "uint8"), (5, 5, 5), kind=KIND)
    made = cells(membrane, "cells.zarr", chunk=(12, 32, 70), shard=(12, 32, 70))
    labels = voxels(made)
    assert open_volume(made).attributes["agglomeration"]["per_section"] is False
    assert set(np.unique(labels[11])) & set(np.unique(labels[12]))


def test_a_volume_without_a_voxel_size_is_refused(home: Path) -> None:
    membrane = put_volume(home / "p.zarr", encode(walls((1, 16, 16)), "uint8"), None, kind=KIND)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"does not say how large its voxels are.*--voxel_size_nm"):
        cells(membrane, "cells.zarr")


def test_sections_that_were_not_predicted_hold_no_fragment(home: Path) -> None:
    membrane = put_volume(home / "p.zarr", encode(walls(SHAPE), "uint8"), kind=KIND, invalid_sections=[1])
    labels = voxels(cells(membrane, "cells.zarr"))
    assert (labels[1] == 0).all() and (labels[[0, 2]] > 0).all()


def test_what_was_kept_between_passes_is_checked_and_made_again(probability: Path, home: Path) -> None:
    made = cells(probability, "cells.zarr")
    first, fragments = voxels(made), voxels(home / "cells-fragments.zarr")
    kept = [
        *(home / "cells-fragments.zarr.ledger").rglob("*-000000003.*"),
        *(home / "cells.zarr.ledger").rglob("cells-*"),
    ]
    assert {path.name.split("-")[0] for path in kept} == {"faces", "local", "edges", "contacts", "sizes", "cells"}
    for path in kept:
        path.write_bytes(path.read_bytes()[:-30])
    shards = (path for path in sorted((home / "cells.zarr" / "0" / "c").rglob("*")) if path.is_file())
    next(shards).write_bytes(b"no shard")
    cells(probability, "cells.zarr", recheck=True)
    np.testing.assert_array_equal(voxels(made), first)
    np.testing.assert_array_equal(voxels(home / "cells-fragments.zarr"), fragments)
    again = {
        stage: Counter(row.status for row in read_rows(home / "cells-fragments.zarr", stage=stage)) for stage in STAGES
    }
    assert all(counts == {"done": 19, "missing": 1} for counts in again.values()), again
