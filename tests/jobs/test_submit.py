"""The real thing: `ray job submit -- python jobs/...` against a cluster that has everything but tessera."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from clusters import Cluster, running_cluster
from mlflow import MlflowClient

from tessera.geometry.boxes import Box
from tessera.settings.ingest import IngestSettings
from tessera.storage.volumes import open_volume
from tessera.tracking.source_tree import tree_name
from tessera.workflows.ingest import ingest

SHAPE = (6, 96, 96)
VOXEL_SIZE_NM = (50.0, 4.0, 4.0)
SMALL_TRAINING = """
name: small
network: {filters: 2, depth: 1}
schedule: {steps: 2, batch: 2, crop_px: 32, checkpoint_every: 2}
optimiser: {warmup_steps: 1}
"""
SMALL_DATA = """
data:
  train: [{volume: raw, labels: labels, sections: 0-3}]
  validation: [{volume: raw, labels: labels, sections: 4-5}]
"""
PROBE = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))
import ray
from tessera.engine.session import connected

def where():
    import platform, tessera
    return f"tessera={tessera.__file__} platform={platform.__file__}"

with connected():
    print("driver", where())
    print("worker", ray.get(ray.remote(where).remote()))
"""

Job = subprocess.CompletedProcess[str]


def grid_of_cells() -> tuple[np.ndarray, np.ndarray]:
    """Square cells with dark membranes between them: grey values and labels, 0 for membrane."""
    y, x = np.indices(SHAPE[1:])
    cell = np.broadcast_to((y % 16 > 2) & (x % 16 > 2), SHAPE)
    noise = np.random.default_rng(5).normal(0, 10, SHAPE)
    return (np.where(cell, 180, 60) + noise).astype(np.uint8), np.where(cell, 255, 0).astype(np.uint8)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster(cpus=4) as running:
        (running.checkout / "configs" / "small.yaml").write_text(SMALL_TRAINING + SMALL_DATA)
        (running.checkout / "configs" / "small-synthetic.yaml").write_text(SMALL_TRAINING)
        (running.checkout / "jobs" / "probe.py").write_text(PROBE)
        # What an editable install leaves in a checkout: Python takes it for an installed distribution.
        leftover = running.checkout / "platform" / "tessera.egg-info" / "PKG-INFO"
        leftover.parent.mkdir()
        leftover.write_text("Metadata-Version: 2.1\nName: tessera\nVersion: 0.0.1\n")
        yield running


@pytest.fixture(scope="module")
def submitted(cluster: Cluster) -> set[Path]:
    return files_below(cluster.checkout)


@pytest.fixture(scope="module")
def ingested(cluster: Cluster, submitted: set[Path]) -> Job:
    raw, labels = grid_of_cells()
    tifffile.imwrite(cluster.folder / "raw.tif", raw, photometric="minisblack")
    tifffile.imwrite(cluster.folder / "labels.tif", labels, photometric="minisblack")
    volumes = cluster.tessera_home / "volumes"
    ingest(
        IngestSettings(
            str(cluster.folder / "labels.tif"),
            str(volumes / "labels.zarr"),
            VOXEL_SIZE_NM,
            kind="labels",
            engine="serial",
        )
    )
    source, size = str(cluster.folder / "raw.tif"), "[50,4,4]"
    return cluster.submit_bare(
        "python", "jobs/ingest.py", "--source", source, "--output", "raw", "--voxel_size_nm", size
    )


@pytest.fixture(scope="module")
def trained(cluster: Cluster, ingested: Job) -> Job:
    assert ingested.returncode == 0, ingested.stdout
    return cluster.submit_checkout("python", "jobs/train.py", "--config", "configs/small.yaml")


@pytest.fixture(scope="module")
def predicted(cluster: Cluster, trained: Job) -> Job:
    assert trained.returncode == 0, trained.stdout
    model = ("--model", "models:/tessera-unet/1")
    return cluster.submit_bare("python", "jobs/predict.py", "--volume", "raw", *model, "--output", "membranes")


@pytest.fixture(scope="module")
def segmented(cluster: Cluster, predicted: Job) -> Job:
    assert predicted.returncode == 0, predicted.stdout
    return cluster.submit_checkout("python", "jobs/segment.py", "--volume", "membranes", "--output", "cells")


def test_workers_import_the_package_that_was_submitted_and_the_standard_library_platform(cluster: Cluster) -> None:
    job = cluster.submit_checkout("python", "jobs/probe.py")
    assert job.returncode == 0, job.stdout
    found = {name: line for name in ("driver", "worker") for line in job.stdout.splitlines() if line.startswith(name)}
    assert re.search(r"tessera=\S+/working_dir_files/_ray_pkg_\w+/platform/tessera/__init__.py", found["driver"])
    assert re.search(r"tessera=\S+/py_modules_files/_ray_pkg_\w+/tessera/__init__.py", found["worker"])
    for line in found.values():
        assert re.search(r"platform=\S+/lib/python[\d.]+/platform.py$", line)


def test_an_ingest_job_run_where_ray_was_started_writes_its_volume_under_tessera_home(
    cluster: Cluster, ingested: Job
) -> None:
    assert ingested.returncode == 0, ingested.stdout
    volume = open_volume(cluster.tessera_home / "volumes" / "raw.zarr")
    assert (volume.shape, volume.voxel_size_nm) == (SHAPE, VOXEL_SIZE_NM)
    np.testing.assert_array_equal(volume.read(Box.whole(SHAPE)), grid_of_cells()[0])


def test_a_train_job_registers_its_model_and_shows_its_steps_in_the_job_log(cluster: Cluster, trained: Job) -> None:
    assert trained.returncode == 0, trained.stdout
    assert "models:/tessera-unet/1" in trained.stdout
    assert "step 2/2" in trained.stdout
    bundle = cluster.tessera_home / "runs" / "small" / "bundle"
    assert {file.name for file in bundle.iterdir()} == {"weights.keras", "contract.json"}
    assert (cluster.tessera_home / "mlflow.db").is_file()


def test_a_run_names_the_code_that_was_sent_with_it(cluster: Cluster, trained: Job) -> None:
    assert trained.returncode == 0, trained.stdout
    client = MlflowClient(f"sqlite:///{cluster.tessera_home / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("tessera").experiment_id])
    # No checkout was there to tell a commit: the sources tell themselves.
    assert "mlflow.source.git.commit" not in run.data.tags
    assert run.data.tags["tessera.tree"] == tree_name(cluster.checkout / "platform" / "tessera")


def test_a_predict_job_finds_the_registered_model_and_finishes_its_volume(cluster: Cluster, predicted: Job) -> None:
    assert predicted.returncode == 0, predicted.stdout
    volume = open_volume(cluster.tessera_home / "volumes" / "membranes.zarr")
    assert (volume.shape, volume.dtype, volume.attributes["complete"]) == (SHAPE, np.uint8, True)


def test_a_segment_job_finishes_its_labels(cluster: Cluster, segmented: Job) -> None:
    assert segmented.returncode == 0, segmented.stdout
    volume = open_volume(cluster.tessera_home / "volumes" / "cells.zarr")
    assert (volume.shape, volume.dtype, volume.attributes["complete"]) == (SHAPE, np.uint64, True)


def test_jobs_leave_nothing_in_the_folder_they_run_in(cluster: Cluster, submitted: set[Path], segmented: Job) -> None:
    assert segmented.returncode == 0, segmented.stdout
    assert files_below(cluster.checkout) == submitted
    uploads = [folder for folder in cluster.uploads.iterdir() if folder.is_dir()]
    assert uploads
    for folder in uploads:
        assert files_below(folder) <= submitted
        assert {file.parts[0] for file in files_below(folder)} == {"platform", "jobs", "configs", ".rayignore"}


def test_a_container_that_ray_runs_in_is_healthy_while_its_node_lives(cluster: Cluster) -> None:
    script = cluster.checkout / "infra" / "docker" / "healthy.sh"
    for port, code in ((cluster.agent_port, 0), (1, 1)):
        environment = cluster.environment | {"RAY_AGENT_PORT": str(port)}
        asked = subprocess.run([script], env=environment, capture_output=True, check=False)
        assert bool(asked.returncode) == bool(code), asked


def test_a_job_that_fails_exits_1_and_says_why_in_its_log(cluster: Cluster) -> None:
    job = cluster.submit_bare("python", "jobs/train.py", "--schedule.stps", "3")
    assert job.returncode == 1
    assert "Did you mean --schedule.steps?" in job.stdout


def test_a_submission_without_the_token_is_refused(cluster: Cluster) -> None:
    job = cluster.submit(job=["python", "jobs/train.py"], RAY_AUTH_MODE="disabled", HOME=str(cluster.folder))
    assert job.returncode == 1
    assert "Missing authentication token" in job.stdout


@pytest.mark.slow
def test_a_train_job_without_data_trains_on_the_synthetic_volume(cluster: Cluster) -> None:
    job = cluster.submit_bare(
        "python", "jobs/train.py", "--config", "configs/small-synthetic.yaml", "--name", "synthetic"
    )
    assert job.returncode == 0, job.stdout
    assert "training on the embedded synthetic volume" in job.stdout


def files_below(folder: Path) -> set[Path]:
    """Relative paths of all files but compiled Python."""
    return {
        file.relative_to(folder) for file in folder.rglob("*") if file.is_file() and file.parent.name != "__pycache__"
    }
