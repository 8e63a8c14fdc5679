"""The only place that calls `ray.init`.

A workflow asks for a connection and gets the cluster of the job it runs in, or a Ray of its own on this machine. The
package travels to the workers here, one way only: as `py_modules`, unless they import this very one already.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from tessera.engine.placement import ClusterSize, NodeSize

_log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]


@contextmanager
def connected(cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block; a Ray that was started for it is stopped at its end.

    Args:
      cpus: logical CPUs of a Ray started here; None counts the machine's. A running cluster has its own.
    """
    if ray.is_initialized():
        yield
        return
    # Ray would otherwise hide GPUs from workers that asked for none, and warn that it will stop doing so.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {
        "logging_level": logging.WARNING,
        # What a worker has to say comes back as rows, reports and errors; its raw output stays in Ray's log folder.
        "log_to_driver": os.environ.get("TESSERA_WORKER_LOGS") == "1",
        "runtime_env": _runtime_env(),
    }
    if os.environ.get("RAY_ADDRESS"):
        _log.info("connecting to the Ray cluster at %s", os.environ["RAY_ADDRESS"])
        ray.init(**options)
    else:
        _log.info("starting a local Ray")
        # Two logical CPUs at least: a training worker and the pipeline that feeds it wait for each other on one.
        count = max(2, cpus or os.cpu_count() or 1)
        ray.init(address="local", num_cpus=count, include_dashboard=False, **options)
    try:
        yield
    finally:
        ray.shutdown()


def _runtime_env() -> dict[str, Any]:
    """Ship the package, unless the job already does or the workers will import this very folder anyhow."""
    # On a cluster always: nodes may lack tessera, or have another version than the checkout that was submitted.
    on_cluster = bool(os.environ.get("RAY_ADDRESS"))
    if _job_ships_modules() or (not on_cluster and _imported_by_default() == PACKAGE):
        return {}
    # A string: Ray cannot pickle the module object.
    return {"py_modules": [str(PACKAGE)]}


def _job_ships_modules() -> bool:
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}") or "{}")
    return "py_modules" in (config.get("runtime_env") or {})


def _imported_by_default() -> Path | None:
    """The folder of the tessera that a fresh interpreter of this environment finds; None where it finds none.

    Asked of one: this process's `sys.path` was changed by the job's script, and a checkout's egg-info passes for an
    installed distribution.
    """
    code = "import tessera; print(tessera.__path__[0])"
    answer = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    return Path(answer.stdout.strip()).resolve() if answer.returncode == 0 else None


def cluster_size() -> ClusterSize:
    """What the connected cluster has."""
    resources = ray.cluster_resources()
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = tuple(
        NodeSize(float(node.get("CPU", 0.0)), float(node.get("GPU", 0.0)), int(node.get("memory", 0.0)))
        for node in alive
    )
    largest = max(node.cpus for node in nodes)
    return ClusterSize(float(resources.get("CPU", 1.0)), float(resources.get("GPU", 0.0)), largest, nodes)
