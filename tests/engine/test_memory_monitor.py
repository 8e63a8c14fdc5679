"""Ray's memory monitor kills a worker for real, and the block goes on in less memory."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

JOB = """
import json, sys, time
import psutil, ray
from tessera.engine.blocks import WorkerPool, run_blocks
from tessera.engine.tasks import RetryPolicy, Task

GIB = 2**30
memory = psutil.virtual_memory()
settings = {"memory_usage_threshold": (memory.total - memory.available + 1.5 * GIB) / memory.total,
            "memory_monitor_refresh_ms": 50}
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20,
         _system_config=settings)

def make_worker():
    def process(item):
        held = bytearray(item) if item < GIB else bytes(b"x" * item)
        time.sleep(2)
        return {"held": len(held)}
    return process

found = []
run_blocks(make_worker, [Task(i, 2 * GIB) for i in range(2)], WorkerPool(1, in_flight=1), RetryPolicy(backoff_s=0.1),
           found.append, squeeze=lambda item, times: item // 8**times)
print(json.dumps([[o.failed, o.attempt, o.losses, o.squeezed, o.row.get("held"), o.error] for o in found]))
"""


@pytest.mark.slow
def test_a_worker_that_ray_kills_for_its_memory_costs_no_try_and_its_blocks_are_squeezed() -> None:
    if psutil.virtual_memory().available < 8 * 2**30:
        pytest.skip("less than 8 GiB are free: others would suffer")
    answer = subprocess.run([sys.executable, "-c", JOB], capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0, answer.stderr[-3000:]
    first, second = json.loads(answer.stdout.splitlines()[-1])
    assert first[:2] == [False, 1] and first[2] >= 1 and first[3] >= 1, first
    assert second[:3] == [False, 1, 0] and second[3] >= 1, "squeezed from the beginning"
    assert answer.stderr.count("ran out of memory") >= 1
