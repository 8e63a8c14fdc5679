"""Useful voxels per second over peers: MONAI's sliding window, and dask's map_overlap around the same predictor.

    python tests/benchmarks/predict_peers.py [--extent 2048]

    tessera      planned tiles                  the valid graph, TensorFlow       array to array | Zarr to Zarr
    MONAI        sliding_window_inference       the same graph, same-padded,      array to array
                                                PyTorch, channels last
    dask         from_zarr, map_overlap,        the same predictor as tessera's                    Zarr to Zarr
                 to_zarr

MONAI's window is padded by the halo, its overlap is two halos, and its weights are 1 inside and 0 in the halo, so that
each voxel is computed once with all of its context: what is left of its cost is the halo's. Batch size, and for the
first aim the window, are the best of a trial. Dask's chunk is the best of a trial as well. All arms are warm, in
processes of their own, in turns; rounds are kept. Prints the table, keeps results/predict_peers.json, exits with 1
where an aim is missed.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from bystander import answer, bystander
from kept import kept_rounds
from machine import PACKAGES, commit, machine
from numpy.typing import NDArray
from pairs import estimate, ratio
from report import Aim, Outcome, tell
from workload import Workload, asked_for, prediction, put_bundle, put_volume, raw_of

MINUTES = 9
USUAL = Workload(sections=1, extent=2048, block=(1, 1024, 1024))
USEFUL = (384, 1024)
HALO = 96  # the network's 94, on its pooling grid of 16
MATMUL = 4096


# The arms, each in a process of its own


class Tessera:
    """The predictor on an array, and a worker's code from Zarr to Zarr with two blocks in flight."""

    def __init__(self, home: Path, work: Workload) -> None:
        from tessera.model.predictor import load_predictor

        self.home, self.work, self.raw = home, work, raw_of(home)
        self.predict, self.contract = load_predictor(home / "bundle")
        self._blocks: Callable[[], None] | None = None

    def array(self, tile: int) -> float:
        """Seconds for the whole volume in memory."""
        begun = time.perf_counter()
        self.probability = self._predicted(self.raw, tile)
        return time.perf_counter() - begun

    def _predicted(self, raw: NDArray[np.uint8], tile: int) -> NDArray[np.float32]:
        from tessera.geometry.boxes import Box
        from tessera.model.predictor import predict_box

        whole = Box.whole(raw.shape)
        return predict_box(self.predict, lambda box: raw[box.slices], raw.shape, whole, (1, tile, tile), self.contract)

    def stored(self, _: int) -> float:
        """Seconds from Zarr to Zarr."""
        run = self._blocks = self._blocks or self._worker()
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun

    def _worker(self) -> Callable[[], None]:
        from tessera.workflows.models import find_model
        from tessera.workflows.outputs import claimed_output
        from tessera.workflows.predict import plan_prediction
        from tessera.workflows.predict_blocks import make_block_worker

        settings = prediction(self.home, self.work, "tessera", engine="serial", overwrite=True)
        plan, output = plan_prediction(settings, find_model(settings.model, None))
        with claimed_output(output, settings):
            pass
        process, items = make_block_worker(plan), list(output.grid.boxes())

        def run() -> None:
            with ThreadPoolExecutor(2) as threads:
                list(threads.map(process, items))

        return run

    def peak(self, _: int) -> float:
        """MiB of this process so far."""
        return _peak_mib()

    def matmul(self, size: int) -> float:
        """Operations per second of this machine's best case."""
        import tensorflow as tf

        one = tf.random.normal((size, size))
        np.asarray(tf.matmul(one, one)[0, 0])
        begun = time.perf_counter()
        np.asarray(tf.matmul(one, one)[0, 0])
        return 2 * size**3 / (time.perf_counter() - begun)

    def keep(self, tile: int) -> float:
        """Leave what was predicted beside the volume, for others to compare with."""
        np.save(self.home / "tessera.npy", self._predicted(self.raw, tile))
        return 0.0


class Monai:
    """Its sliding window around the same graph in PyTorch."""

    def __init__(self, home: Path, work: Workload) -> None:
        import keras
        import torch
        from torch_unet import torch_unet

        self.home, self.network = home, torch_unet(keras.models.load_model(home / "bundle" / "weights.keras"), 4)
        raw = work.contract.normalisation.apply(raw_of(home))
        padded = np.pad(raw, ((0, 0), (HALO, HALO), (HALO, HALO)), mode="reflect")
        self.image = torch.from_numpy(padded)[:, None]

    def array(self, useful: int, batch: int = 1) -> float:
        """Seconds for the whole volume in memory."""
        begun = time.perf_counter()
        self.probability = self._slid(useful, batch)
        return time.perf_counter() - begun

    def _slid(self, useful: int, batch: int) -> NDArray[np.float32]:
        import torch
        from monai.inferers import sliding_window_inference

        side = useful + 2 * HALO
        weight = torch.zeros(1, 1, side, side)
        weight[..., HALO:-HALO, HALO:-HALO] = 1
        # Half a pixel less, or rounding down would move each window by one.
        overlap = (2 * HALO - 0.5) / side
        with torch.inference_mode():
            found = sliding_window_inference(
                self.image,
                (side, side),
                batch,
                lambda windows: torch.sigmoid(self.network(windows)),
                overlap=overlap,
                roi_weight_map=weight,
            )
        return found[:, 0, HALO:-HALO, HALO:-HALO].numpy()

    def apart(self, useful: int) -> float:
        """The largest difference from what tessera left."""
        ours = np.load(self.home / "tessera.npy")
        return float(np.abs(self._slid(useful, 1) - ours).max())


class Dask:
    """map_overlap around the same predictor."""

    def __init__(self, home: Path, work: Workload) -> None:
        from tessera.model.predictor import load_predictor

        self.home, self.work = home, work
        self.predict, self.contract = load_predictor(home / "bundle")

    def stored(self, chunk: int) -> float:
        """Seconds from Zarr to Zarr."""
        import dask
        import dask.array as da

        from tessera.images.quantise import quantise
        from tessera.storage.volumes import create_volume

        margin = self.contract.network.arithmetic.axes[1].halo
        crop = self.contract.network.arithmetic.crop[1]
        rule, predict = self.contract.normalisation, self.predict

        def network(block: NDArray[np.uint8]) -> NDArray[np.uint8]:
            valid = predict(rule.apply(block)[..., np.newaxis])[..., 0]
            return quantise(valid[:, crop:-crop, crop:-crop])

        raw = da.from_zarr(str(self.home / "volumes" / "raw.zarr"), component="0", chunks=(1, chunk, chunk))
        grown = da.overlap.overlap(raw, depth=(0, margin, margin), boundary="reflect", allow_rechunk=False)
        found = grown.map_blocks(network, dtype=np.uint8, chunks=raw.chunks)
        out = self.home / f"dask-{time.monotonic_ns()}.zarr"
        block = (1, chunk, chunk)
        made = create_volume(out, raw.shape, np.uint8, voxel_size_nm=None, chunk=(1, 256, 256), shard=block)
        begun = time.perf_counter()
        # One thread would read, predict and write in turn; more than two predict at once, for the same cores.
        with dask.config.set(scheduler="threads", num_workers=2):
            da.store(found, made.array, lock=False)
        return time.perf_counter() - begun

    def peak(self, _: int) -> float:
        """MiB of this process so far."""
        return _peak_mib()


ARMS: dict[str, Any] = {"tessera": Tessera, "monai": Monai, "dask": Dask}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def arm(name: str, home: Path, work: Workload) -> int:
    """One arm's process: answers (method, argument, ...)."""
    made = ARMS[name](home, work)
    return answer(lambda method, *given: getattr(made, method)(*given))


# The judge


def best_of(ask: Callable[..., float], method: str, choices: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The argument with which an arm is fastest: each tried twice, the second time counts."""
    seconds = {}
    for choice in choices:
        ask(method, *choice)
        seconds[choice] = ask(method, *choice)
    print(f"{method}: {seconds}", file=sys.stderr, flush=True)
    return min(seconds, key=lambda choice: seconds[choice])


def main() -> int:
    """Measure, print and keep."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    facts, work = machine((*PACKAGES, "monai", "torch", "dask")), asked_for((__doc__ or "").splitlines()[0], USUAL)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made, ExitStack() as open_arms:
        home = Path(made)
        os.environ["TESSERA_HOME"] = made
        put_volume(home, work)
        _apart("--bundle", home, work)
        ask = {
            name: open_arms.enter_context(bystander(__file__, "--arm", name, made, *_words(work))).ask for name in ARMS
        }
        return tell(_measured(ask, work, facts))


def _measured(ask: dict[str, Callable[..., Any]], work: Workload, facts: dict[str, Any]) -> Outcome:
    voxels, (small, large) = work.sections * work.extent**2, _useful(work)
    side = _planned(work)
    monai = best_of(ask["monai"], "array", [(small, 1), (small, 2), (large, 1), (work.extent, 1)])
    chunk = best_of(ask["dask"], "stored", [(small,), (large,), (work.extent,)])
    ask["tessera"]("keep", large)
    apart = ask["monai"]("apart", large)
    ask["tessera"]("stored", 0)
    arms = {
        f"tessera, array, planned tiles of {side}": lambda: voxels / ask["tessera"]("array", side),
        f"tessera, array, tiles of {large}": lambda: voxels / ask["tessera"]("array", large),
        f"MONAI, window of {monai[0]} useful, batch {monai[1]}": lambda: voxels / ask["monai"]("array", *monai),
        f"MONAI, window of {large} useful": lambda: voxels / ask["monai"]("array", large),
        "tessera, Zarr": lambda: voxels / ask["tessera"]("stored", 0),
        f"dask, Zarr, chunks of {chunk[0]}": lambda: voxels / ask["dask"]("stored", *chunk),
    }
    found = list(kept_rounds("predict_peers", {"work": str(work), "commit": commit()}, arms).items())
    peaks = {name: ask[name]("peak", 0) for name in ("tessera", "dask")}
    ours, ours_large, best, best_large, stored, dask = (speeds for _, speeds in found)
    flops = work.network.cost.flops((1, large + 188, large + 188)) / large**2
    figures = {f"{name}, useful voxels/s": estimate(speeds) for name, speeds in found}
    figures |= {f"{name}, peak MiB": estimate([peak]) for name, peak in peaks.items()}
    rates = [ask["tessera"]("matmul", MATMUL) for _ in range(7)]
    least = work.network.cost.flops((1, 2**14 + 188, 2**14 + 188)) / 2**28
    figures["useful share of the matmul rate"] = estimate([v * least / r for v, r in zip(ours, rates, strict=True)])
    figures["computed share of the matmul rate"] = estimate(
        [v * flops / r for v, r in zip(ours_large, rates, strict=True)]
    )
    aims = [
        Aim("over MONAI at its best", ratio(ours, best), ">=", 1.1),
        Aim(f"over MONAI, both {large}", ratio(ours_large, best_large), ">=", 1.3),
        Aim("over dask at its best, Zarr to Zarr", ratio(stored, dask), ">=", 1.0),
        Aim("largest difference from MONAI", estimate([apart]), "<=", 1e-4),
    ]
    what = "Useful voxels per second on one machine's cores, warm, in turns, over MONAI and dask"
    return Outcome("predict_peers", what, facts, figures, aims, [str(work)])


def _planned(work: Workload) -> int:
    """The planner's tile for the whole volume as one block, in pixels."""
    from tessera.geometry.blocks import BlockGrid
    from tessera.workflows.worker_plan import BlockWork, machine_memory_bytes, plan_worker

    whole = BlockWork(work.network, BlockGrid(work.shape, work.shape), (0, 0, 0))
    return max(plan_worker(whole, None, machine_memory_bytes() // 3).tile.tile)


def _useful(work: Workload) -> tuple[int, int]:
    """Useful pixels of a small and of a large window, of 384 and 1,024 on the standard extent."""
    return (USEFUL[0] * work.block[1] // USEFUL[1], work.block[1])


def _apart(step: str, home: Path, work: Workload) -> None:
    import subprocess

    subprocess.run([sys.executable, __file__, step, str(home), *_words(work)], check=True)


def _words(work: Workload) -> list[str]:
    said = {"extent": work.extent, "sections": work.sections, "block": work.block[1], "filters": work.network.filters}
    return [word for name, value in said.items() for word in (f"--{name}", str(value))]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--bundle"]:
        put_bundle(Path(sys.argv[2]), asked_for("a model", USUAL, sys.argv[3:]))
        sys.exit(0)
    if sys.argv[1:2] == ["--arm"]:
        sys.exit(arm(sys.argv[2], Path(sys.argv[3]), asked_for("an arm", USUAL, sys.argv[4:])))
    sys.exit(main())
