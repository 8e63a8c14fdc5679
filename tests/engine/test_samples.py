"""Sample streams on Ray Data: order, ranks, restarts and worker counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tessera.engine.samples import sample_batches


def _sample(shared: np.ndarray, index: int) -> dict[str, Any]:
    return {"index": np.int64(index), "value": shared + index}


def _indices(**place: int) -> list[int]:
    batches = sample_batches(_sample, np.arange(3), batch_size=2, rows_per_task=3, **place)
    return [int(i) for batch in batches for i in batch["index"]]


def test_one_rank_gets_every_index_in_order(ray_session: None) -> None:
    assert _indices(first=0, last=20, rank=0, world=1) == list(range(20))


def test_ranks_share_the_indices_round_robin(ray_session: None) -> None:
    ranks = [_indices(first=0, last=16, rank=rank, world=2) for rank in (0, 1)]
    assert ranks == [list(range(0, 16, 2)), list(range(1, 16, 2))]


def test_a_restart_goes_on_where_the_checkpoint_stood(ray_session: None) -> None:
    whole = _indices(first=0, last=16, rank=1, world=2)
    assert _indices(first=8, last=16, rank=1, world=2) == whole[4:]


def test_samples_arrive_whole_with_the_shared_value(ray_session: None) -> None:
    (batch, *_) = sample_batches(_sample, np.arange(3), first=4, last=8, rank=0, world=1, batch_size=4)
    assert batch["value"].tolist() == [[4, 5, 6], [5, 6, 7], [6, 7, 8], [7, 8, 9]]


def _refuse(shared: object, index: int) -> dict[str, Any]:
    raise ValueError(f"sample {index} cannot be made")


def test_a_sample_that_cannot_be_made_is_named(ray_session: None) -> None:
    with pytest.raises(Exception, match="sample 0 cannot be made"):
        list(sample_batches(_refuse, None, first=0, last=4, rank=0, world=1, batch_size=2))
