"""System metrics are this machine's own, between two reports, under MLflow's names."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from tessera.tracking.system import gpu_handles, metered, read_gpus

NAMES = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/network_receive_megabytes",
    "system/network_transmit_megabytes",
}


def _spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_what_the_machine_does_is_seen() -> None:
    with metered(every_s=0.05) as means:
        _spin(1.0)
        busy = means()
    assert set(busy) >= NAMES
    assert busy["system/cpu_utilization_percentage"] > 40 / psutil.cpu_count(), "one core is spinning"
    memory = psutil.virtual_memory()
    assert busy["system/system_memory_usage_megabytes"] == pytest.approx(memory.used / 1e6, rel=0.3)
    assert 0 < busy["system/system_memory_usage_percentage"] < 100


def test_traffic_is_counted_from_the_beginning_of_the_run() -> None:
    with metered() as means:
        before = means()["system/network_receive_megabytes"]
        ours, theirs = _connected()
        for _ in range(20):
            ours.sendall(b"\0" * 1_000_000)
            _receive(theirs, 1_000_000)
        after = means()["system/network_receive_megabytes"]
        ours.close()
        theirs.close()
    assert before >= 0
    assert after - before >= 20


def _connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        return ours, server.accept()[0]


def _receive(connection: socket.socket, count: int) -> None:
    while count:
        count -= len(connection.recv(count))


def test_a_reading_is_there_however_soon_one_asks() -> None:
    with metered(every_s=60.0) as means:
        assert set(means()) >= NAMES
        assert set(means()) >= NAMES


def test_switched_off_nothing_is_read() -> None:
    with metered(on=False) as means:
        assert means() == {}


def test_gpus_are_told_one_by_one_and_what_they_keep_to_themselves_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's driver is stood in for: most machines that run this have none."""

    def no_power(_: Any) -> float:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda i: i)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", lambda i: SimpleNamespace(gpu=40 + i))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda _: SimpleNamespace(used=2e9, total=8e9))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", no_power)
    assert read_gpus(gpu_handles()) == {
        f"gpu_{i}_{name}": value
        for i in (0, 1)
        for name, value in (
            ("utilization_percentage", 40.0 + i),
            ("memory_usage_megabytes", 2000.0),
            ("memory_usage_percentage", 25.0),
        )
    }


def test_a_machine_without_gpus_has_no_gpu_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert gpu_handles() == []
