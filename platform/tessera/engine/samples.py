"""Ordered sample streams on Ray Data.

A sample is a pure function of its global index, so a stream is a range of integers and a function. Each training rank
runs a pipeline of its own over `indices[rank::world]`: `streaming_split` would hand rows to whichever worker asks
first, and a restart or another number of Data workers would feed other samples to other steps. The pipeline is built
inside the rank, after it has read its checkpoint, because only there the first index is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

Sample = Mapping[str, NDArray[Any]]
MakeSample = Callable[[Any, int], Sample]
"""(shared value, global index) -> arrays of fixed shapes."""


def sample_batches(
    make_sample: MakeSample,
    shared: Any,
    *,
    first: int,
    last: int,
    rank: int,
    world: int,
    batch_size: int,
    rows_per_task: int = 16,
) -> Iterator[dict[str, NDArray[Any]]]:
    """Batches of the samples `first + rank, first + rank + world, ...` below `last`, in that order.

    Args:
      make_sample: see `MakeSample`; a module-level function.
      shared: read-only value given to each call, put into the object store once and read without copying.
      first: first global index.
      last: one past the last global index.
      rank: this worker's.
      world: number of workers.
      batch_size: samples a batch; an incomplete last batch is dropped.
      rows_per_task: samples made by one Ray task.

    Yields:
      name -> array of (batch_size, ...). The arrays may be read-only views into the object store.
    """
    count = len(range(first + rank, last, world))
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    make_rows = partial(_make_rows, make_sample, ray.put(shared), first + rank, world)
    rows = ray.data.range(count, override_num_blocks=max(1, -(-count // rows_per_task)))
    samples = rows.map_batches(make_rows, batch_size=rows_per_task, zero_copy_batch=True)
    yield from samples.iter_batches(batch_size=batch_size, drop_last=True, prefetch_batches=2)


def _make_rows(
    make_sample: MakeSample, shared: ray.ObjectRef, offset: int, stride: int, rows: Mapping[str, NDArray[np.int64]]
) -> dict[str, NDArray[Any]]:
    value = ray.get(shared)
    samples = [make_sample(value, offset + stride * int(row)) for row in rows["id"]]
    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
