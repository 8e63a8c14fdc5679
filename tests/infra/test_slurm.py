"""infra/slurm/ray.sbatch on a real Slurm of two nodes: Ray over the allocation, one job on it, and nothing left."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
from slurm_host import Slurm, running_slurm

from tessera.geometry.boxes import Box
from tessera.storage.volumes import open_volume

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = "infra/slurm/ray.sbatch"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as name, running_slurm(Path(name)) as running:
        yield running


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("platform", "jobs", "configs", "infra"):
        shutil.copytree(REPOSITORY / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "checkout"


def submit(slurm: Slurm, checkout: Path, *words: str, home: Path) -> str:
    """Submit a job from the checkout as a user would; returns its number."""
    variables = {"TESSERA_ENV": sys.prefix, "TESSERA_HEAD_IP": "127.0.0.1", "TESSERA_HOME": str(home)}
    return slurm.call("sbatch", "--parsable", *words, cwd=checkout, **variables)


def log_of(checkout: Path, job: str) -> str:
    """What a job has printed so far."""
    log = checkout / f"tessera-{job}.log"
    return log.read_text() if log.exists() else ""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_runs_on_a_ray_over_both_nodes_and_leaves_nothing_behind(
    slurm: Slurm, checkout: Path, home: Path, tmp_path: Path
) -> None:
    raw = np.random.default_rng(0).integers(0, 255, (4, 64, 64), np.uint8)
    tifffile.imwrite(tmp_path / "raw.tif", raw, photometric="minisblack")
    words = ("--source", str(tmp_path / "raw.tif"), "--output", "raw", "--voxel_size_nm", "[50,4,4]")
    job = submit(slurm, checkout, SCRIPT, "jobs/ingest.py", *words, home=home)
    state = slurm.wait_until(job, "JobState", ENDED)
    log = log_of(checkout, job)
    assert state == "COMPLETED", log
    assert "2 of 2 nodes have joined" in log
    np.testing.assert_array_equal(open_volume(home / "volumes" / "raw.zarr").read(Box.whole(raw.shape)), raw)
    assert not re.search(r"[0-9a-f]{64}", log), "the token is in the log"
    assert not Path(f"/tmp/ray-{job}").exists()
    assert not [one for one in psutil.process_iter(["cmdline"]) if f"ray-{job}" in " ".join(one.info["cmdline"] or ())]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_fails_is_slurms_failed_job_with_its_exit_code(slurm: Slurm, checkout: Path, home: Path) -> None:
    job = submit(slurm, checkout, "--nodes=1", SCRIPT, "jobs/ingest.py", "--sorce", "x", home=home)
    assert slurm.wait_until(job, "JobState", ENDED) == "FAILED"
    assert slurm.field(job, "ExitCode") == "2:0"
    assert "Did you mean --source?" in log_of(checkout, job)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_runs_out_of_time_goes_back_in_line(slurm: Slurm, checkout: Path, home: Path) -> None:
    (checkout / "jobs" / "sleep.py").write_text("import time; print('at work', flush=True); time.sleep(600)\n")
    job = submit(slurm, checkout, "--nodes=1", SCRIPT, "jobs/sleep.py", home=home)
    slurm.wait_until(job, "JobState", {"RUNNING"})
    while "at work" not in log_of(checkout, job):
        assert slurm.field(job, "JobState") == "RUNNING", log_of(checkout, job)
        time.sleep(0.5)
    # What Slurm does by itself two minutes before the end, as the script's --signal asks.
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_until(job, "Restarts", {"1"})
    assert slurm.wait_until(job, "JobState", {"PENDING"}) == "PENDING"
    assert "goes back in line" in log_of(checkout, job)
    slurm.call("scancel", job)


def test_the_script_wants_a_job_and_slurm(tmp_path: Path) -> None:
    for words, said in (([], "usage: sbatch"), (["jobs/train.py"], "submit this script with sbatch")):
        environment = {"PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            ["bash", REPOSITORY / SCRIPT, *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0 and said in done.stderr
