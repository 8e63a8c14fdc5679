"""What the machine did meanwhile: processor, memory, network and GPUs, under the names of MLflow's system metrics.

MLflow's own monitor would import MLflow into the training worker, write to the store beside the controller, and count
its readings by a clock of its own, so that two runs would share no step. This one only reads; its means travel with the
worker's reports and are logged at the training's steps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

PREFIX = "system/"
"""MLflow shows metrics of this prefix on a page of their own."""

Reading = dict[str, float]


@contextmanager
def metered(*, on: bool = True, every_s: float = 2.0) -> Iterator[Callable[[], Reading]]:
    """Read this machine while the block runs; gives a function that returns the means since it was last called.

    Processor in percent of all cores, memory in megabytes (1e6 bytes) and percent, and of each GPU of the node its
    utilisation in percent, memory in megabytes and percent and power in watts are means over readings; network traffic
    is the megabytes since the block began.

    Args:
      on: whether to read at all; the function's answer is empty where not.
      every_s: seconds between two readings.
    """
    if not on:
        yield dict
        return
    meter = _Meter()
    stop = threading.Event()

    def follow() -> None:
        while not stop.wait(every_s):
            meter.read()

    thread = threading.Thread(target=follow, name="system-metrics", daemon=True)
    thread.start()
    try:
        yield meter.means
    finally:
        stop.set()
        thread.join()


class _Meter:
    """Sums of readings between two reports; read by its thread and emptied by the training's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gpus = gpu_handles()
        self._begun = psutil.net_io_counters()
        self._readings: list[Reading] = []
        psutil.cpu_percent()  # the first call has nothing to compare with

    def read(self) -> None:
        reading = {"cpu_utilization_percentage": psutil.cpu_percent(), **_memory(), **read_gpus(self._gpus)}
        with self._lock:
            self._readings.append(reading)

    def means(self) -> Reading:
        if not self._readings:
            self.read()
        with self._lock:
            readings, self._readings = self._readings, []
        names = {name for reading in readings for name in reading}  # a GPU that fell silent is in some of them only
        found = {name: [reading[name] for reading in readings if name in reading] for name in names}
        values = {name: sum(seen) / len(seen) for name, seen in found.items()} | self._traffic()
        return {f"{PREFIX}{name}": value for name, value in values.items()}

    def _traffic(self) -> Reading:
        now = psutil.net_io_counters()
        return {
            "network_receive_megabytes": (now.bytes_recv - self._begun.bytes_recv) / 1e6,
            "network_transmit_megabytes": (now.bytes_sent - self._begun.bytes_sent) / 1e6,
        }


def _memory() -> Reading:
    memory = psutil.virtual_memory()
    return {
        "system_memory_usage_megabytes": memory.used / 1e6,
        "system_memory_usage_percentage": 100 * memory.used / memory.total,
    }


def gpu_handles() -> list[Any]:
    """NVIDIA's handles of this node's GPUs; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def read_gpus(handles: list[Any]) -> Reading:
    """Utilisation, memory and power of each GPU; what a GPU does not tell is left out."""
    import pynvml

    reading: Reading = {}
    for i, handle in enumerate(handles):
        for values in (_gpu_use, _gpu_memory, _gpu_power):
            try:
                reading |= {f"gpu_{i}_{name}": value for name, value in values(pynvml, handle).items()}
            except pynvml.NVMLError:  # a slice of a shared GPU tells no power
                continue
    return reading


def _gpu_use(nvml: Any, handle: Any) -> Reading:
    return {"utilization_percentage": float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)}


def _gpu_memory(nvml: Any, handle: Any) -> Reading:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "memory_usage_megabytes": memory.used / 1e6,
        "memory_usage_percentage": 100 * memory.used / memory.total,
    }


def _gpu_power(nvml: Any, handle: Any) -> Reading:
    return {"power_usage_watts": nvml.nvmlDeviceGetPowerUsage(handle) / 1000}
