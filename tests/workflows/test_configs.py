"""Each config of predict and segment runs as it is: volumes, models and places alone are put in, and the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundles import make_bundle
from objectstore import BUCKET, S3Server
from terminal import tessera
from tessera.cli.main import parse
from tessera.geometry.boxes import Box
from tessera.images.quantise import decode
from tessera.model.predictor import load_predictor, predict_volume
from tessera.storage.volumes import Volume, create_volume, open_volume
from volumes import grey

Capsys = pytest.CaptureFixture[str]
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHAPE = (2, 64, 80)
SERIAL = ("--engine", "serial")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b")


def put_raw(place: object) -> None:
    layout = {"chunk": (2, 32, 32), "shard": (2, 64, 96)}
    volume = create_volume(str(place), SHAPE, np.uint8, voxel_size_nm=(50, 4, 4), **layout)
    volume.write(Box.whole(SHAPE), grey(SHAPE))


def run(capsys: Capsys, command: str, config: str, *words: object) -> Volume:
    answer = tessera(capsys, command, "--config", CONFIGS / config, *words)
    assert answer.code == 0, answer.err
    return open_volume(answer.out.strip())


def assert_predicted(output: Volume, bundle: Path) -> None:
    network, contract = load_predictor(bundle)
    whole = predict_volume(network, grey(SHAPE), contract)
    np.testing.assert_allclose(decode(output.array[:]), whole, atol=1 / 510 + 1e-5)
    assert output.attributes["complete"] is True


def test_the_local_config_and_those_of_segment_make_cells_of_a_volume_on_disk(
    bundle: Path, home: Path, capsys: Capsys
) -> None:
    put_raw(home / "volumes" / "raw.zarr")
    output = run(capsys, "predict", "predict-local.yaml", "--volume", "raw", "--model", bundle, *SERIAL)
    assert output.place == home / "volumes" / "isbi-membranes.zarr"
    assert_predicted(output, bundle)
    cells = run(capsys, "segment", "segment.yaml", *SERIAL)
    assert cells.place == home / "volumes" / "isbi-cells.zarr"
    assert cells.attributes["threshold"] == 0.5 and cells.attributes["cells"] == cells.array[:].max() > 0
    neurons = run(capsys, "segment", "segment-watershed.yaml", *SERIAL)
    assert neurons.attributes["fragments"].endswith("isbi-fragments.zarr")
    assert neurons.attributes["cells"] == neurons.array[:].max() > 0


def test_the_s3_config_reads_and_writes_a_bucket(bundle: Path, s3: S3Server, capsys: Capsys) -> None:
    put_raw(f"s3://{BUCKET}/raw.zarr")
    places = ("--volume", f"s3://{BUCKET}/raw.zarr", "--output", f"s3://{BUCKET}/membranes.zarr")
    output = run(capsys, "predict", "predict-s3.yaml", *places, "--model", bundle, *SERIAL)
    assert str(output.place) == f"s3://{BUCKET}/membranes.zarr" and output.zarr_format == 3
    assert_predicted(output, bundle)


def test_the_gpu_config_takes_the_gpus_that_ray_has() -> None:
    from tessera.engine.placement import ClusterSize, block_pool

    settings = parse(["predict", "--config", str(CONFIGS / "predict-gpu.yaml")])[1]
    assert settings.engine == "ray"
    pool = block_pool(settings.workers, ClusterSize(cpus=32, gpus=4, node_cpus=16))
    assert (pool.workers, pool.gpus) == (4, 1.0)


def test_the_gpu_config_runs_where_there_is_no_gpu(ray_session: None, bundle: Path, home: Path, capsys: Capsys) -> None:
    put_raw(home / "volumes" / "raw.zarr")
    assert_predicted(run(capsys, "predict", "predict-gpu.yaml", "--volume", "raw", "--model", bundle), bundle)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_config_opens_with_its_source_its_cost_and_its_score(path: Path) -> None:
    lines = path.read_text().splitlines()
    opening = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    found = [line for line in opening if line.startswith(("# Source: ", "# Cost: ", "# Score: "))]
    assert [line.split(":")[0] for line in found] == ["# Source", "# Cost", "# Score"]
    assert all(len(line.split(":", 1)[1]) > 10 for line in found)
