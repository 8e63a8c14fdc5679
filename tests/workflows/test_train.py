"""Training end to end on real Ray, TensorFlow and MLflow, small enough for two cores."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from bundles import make_bundle
from tessera.images.augment import Augmentation
from tessera.model.bundle import load_contract, load_model
from tessera.model.optimiser import OptimiserSpec
from tessera.model.predictor import load_predictor, predict_volume
from tessera.model.spec import UnetSpec
from tessera.model.training import Snapshot
from tessera.settings.train import (
    AnnotatedSections,
    DataSettings,
    InferenceSettings,
    LossSettings,
    ResourceSettings,
    ScheduleSettings,
    TrainSettings,
)
from tessera.storage.volumes import create_volume, update_attributes
from tessera.tracking.runs import speaking_to, tracking_uri
from tessera.workflows import train as workflow
from tessera.workflows.annotated import AnnotatedSet, load_annotated
from tessera.workflows.models import find_model
from tessera.workflows.train import TrainResult, rounded_batches, train
from tessera.workflows.training_loop import make_sample, samples_of_step, sampling_source, validate
from tessera.workflows.training_plan import first_contract

SECTIONS, SIZE = 6, 96


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny annotated volume: bright squares of cell between dark lines of membrane, with noise."""
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(4)
    rows = np.arange(SIZE)
    lines = ((rows + 3) % 24) < 4
    membrane = np.stack([np.roll(lines[:, None] | lines[None, :], z, axis=(0, 1)) for z in range(SECTIONS)])
    raw = np.clip(170 - 90 * membrane + 20 * rng.standard_normal(membrane.shape), 0, 255).astype(np.uint8)
    for name, voxels in (("raw", raw), ("labels", np.where(membrane, 0, 255).astype(np.uint8))):
        path = folder / f"{name}.zarr"
        shape = voxels.shape
        volume = create_volume(path, shape, np.uint8, voxel_size_nm=(50, 4, 4), chunk=shape, shard=shape)
        volume.array[:] = voxels
        update_attributes(path, complete=True)
    return folder / "raw.zarr", folder / "labels.zarr"


def _settings(volumes: tuple[Path, Path], **changes: Any) -> TrainSettings:
    raw, labels = map(str, volumes)
    settings = TrainSettings(
        name="tiny",
        data=DataSettings([AnnotatedSections(raw, labels, "0-3")], [AnnotatedSections(raw, labels, "4-5")]),
        network=UnetSpec(filters=4, depth=2, padding="same", batch_norm=True, dropout=0.0),
        augmentation=Augmentation(elastic_sigma_px=2.0, flips=True, contrast=0.1, noise_sigma=0.05),
        optimiser=OptimiserSpec(learning_rate=1e-2, warmup_steps=2, ema_momentum=0.8, ema_norm_batches=4),
        schedule=ScheduleSettings(steps=24, batch=4, crop_px=64, log_every=6, checkpoint_every=12),
        inference=InferenceSettings(symmetries=8),
    )
    return replace(settings, **changes)


def _losses(run_id: str, home: Path) -> list[float]:
    client = MlflowClient(tracking_uri(None, home))
    return [metric.value for metric in client.get_metric_history(run_id, "loss")]


@pytest.fixture
def learned(volumes: tuple[Path, Path]) -> AnnotatedSet:
    data = _settings(volumes).data
    return load_annotated(data.train, data)


def test_training_from_a_cut_to_a_refit(
    ray_session: None, volumes: tuple[Path, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One story, because each training group costs an import of TensorFlow: cut, resume, finish, refit, two workers."""
    begun = _cut_before_registration(volumes, home, monkeypatch)
    result = train(_settings(volumes))
    assert result.run_id == begun, "an interrupted run goes on in its own MLflow run"
    _assert_the_run_holds_what_it_promises(result, home)
    _assert_the_run_is_a_lab_notebook(
        result, home, {"first_batch": [0], "validation": [12, 24], "threshold_curve": [24]}
    )
    _assert_the_registered_model_predicts_what_the_bundle_does(result, home)
    with pytest.raises(FileExistsError, match=r"run tiny is finished.*give another --name"):
        train(_settings(volumes))
    _assert_a_refit_freezes_the_threshold(volumes, result, home)

    two = train(_settings(volumes, name="two", resources=ResourceSettings(workers=2)))
    np.testing.assert_allclose(_losses(two.run_id, home), _losses(result.run_id, home), rtol=5e-3)
    _assert_the_same_network(two.bundle, result.bundle)
    assert _pictures(two.run_id, home)["first_batch"] == [0]
    one_fed, two_fed = (_fed(home, name) for name in ("tiny", "two"))
    assert len(one_fed) == 24 and one_fed == two_fed, "the same samples, whoever shares them"


def _fed(home: Path, name: str) -> list[str]:
    return (home / "runs" / name / "fed.jsonl").read_text().splitlines()


def test_too_many_workers_are_refused_before_a_run_begins(
    ray_session: None, volumes: tuple[Path, Path], home: Path
) -> None:
    with pytest.raises(ValueError, match=r"workers=9 is more than this cluster's 4 CPUs.*--resources.workers 6"):
        train(_settings(volumes, resources=ResourceSettings(workers=9)))
    assert not (home / "runs").exists(), "the same name is free for another number"
    assert not MlflowClient(tracking_uri(None, home)).search_runs(["0"])


def test_a_rounded_batch_is_told_with_its_learning_rate(volumes: tuple[Path, Path]) -> None:
    """Of 3 workers' multiples 3 is the nearest to a batch of 4; adam's rate goes with the square root."""
    for workers, told in ((2, ""), ("1-2", ""), (3, "3 samples a step on 3 workers, learning rate 0.00866")):
        sentence = rounded_batches(_settings(volumes, resources=ResourceSettings(workers=workers)))
        assert sentence.endswith(told) and bool(sentence) == bool(told)
    several = rounded_batches(_settings(volumes, resources=ResourceSettings(workers="2-5")))
    assert "3 samples a step on 3 workers" in several and "5 samples a step on 5 workers" in several


def _assert_the_same_network(bundle: Path, other: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (1, 48, 40), dtype=np.uint8)
    one, another = (
        predict_volume(network, raw, contract) for network, contract in map(load_predictor, (bundle, other))
    )
    np.testing.assert_allclose(one, another, atol=0.02)


@pytest.mark.slow
def test_a_run_that_diverges_stops_at_once_and_names_its_samples(
    ray_session: None, volumes: tuple[Path, Path], home: Path
) -> None:
    """On two workers: one that stopped alone would leave the other waiting for its gradients."""
    wild = OptimiserSpec("sgd", learning_rate=1e30, warmup_steps=0, schedule="constant")
    with pytest.raises(RuntimeError) as told:
        train(_settings(volumes, optimiser=wild, resources=ResourceSettings(workers=2)))
    message = str(told.value)
    found = re.fullmatch(
        r"training tiny failed: the loss of step (\d+) is (?:nan|inf): .* Step \1 was fed samples (\d+) to (\d+): "
        r"[\d, ]+ from raw\.zarr section [0-3].*\.",
        message,
    )
    assert found, message
    step, first, last = map(int, found.groups())
    assert (first, last) == (4 * step, 4 * step + 3)


def _cut_before_registration(volumes: tuple[Path, Path], home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    def lost(*_: Any) -> str:
        raise RuntimeError("the registry is unreachable")

    with monkeypatch.context() as patched:
        patched.setattr(workflow, "register_bundle", lost)
        with pytest.raises(RuntimeError, match="registry is unreachable"):
            train(_settings(volumes))
    begun = str(json.loads((home / "runs" / "tiny" / "run.json").read_text())["run_id"])
    assert MlflowClient(tracking_uri(None, home)).get_run(begun).info.status == "FAILED"
    return begun


def _assert_the_run_holds_what_it_promises(result: TrainResult, home: Path) -> None:
    client = MlflowClient(tracking_uri(None, home))
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["network.filters"] == "4"
    assert [m.step for m in client.get_metric_history(result.run_id, "loss")] == [6, 12, 18, 24]
    losses = _losses(result.run_id, home)
    assert losses[-1] < 0.7 * losses[0], "it learns"
    assert [m.step for m in client.get_metric_history(result.run_id, "val_v_rand")] == [12, 24]
    read = {i.tags[0].value: i.dataset.digest for i in run.inputs.dataset_inputs}
    assert read["training"] == result.contract.training["fingerprint"][:16]
    assert set(read) == {"training", "validation"}
    assert read["training"] != read["validation"]
    pictures = [f.path for f in client.list_artifacts(result.run_id, "images")]
    assert any("validation" in path for path in pictures)
    version = client.get_model_version("tessera-unet", result.model_uri.rsplit("/", 1)[-1])
    assert version.run_id == result.run_id
    contract = load_contract(result.bundle)
    assert contract.training["run_id"] == result.run_id
    assert contract.threshold is not None
    assert 0 <= contract.threshold < 1
    assert contract.voxel_size_nm == (50, 4, 4)
    assert contract.symmetries == 8, "prediction averages as the threshold's choice did"


def _pictures(run_id: str, home: Path) -> dict[str, list[int]]:
    """Steps by key of the pictures that MLflow shows over steps."""
    files = MlflowClient(tracking_uri(None, home)).list_artifacts(run_id, "images")
    found = [re.match(r"images/(\w+)\+step\+(\d+)\+.*\.png", file.path) for file in files]
    steps: dict[str, list[int]] = {}
    for one in filter(None, found):
        steps.setdefault(one[1], []).append(int(one[2]))
    return {key: sorted(found) for key, found in steps.items()}


def _assert_the_run_is_a_lab_notebook(result: TrainResult, home: Path, pictures: dict[str, list[int]]) -> None:
    client = MlflowClient(tracking_uri(None, home))

    def steps(name: str) -> list[int]:
        return [metric.step for metric in client.get_metric_history(result.run_id, name)]

    shown = _pictures(result.run_id, home)
    assert shown == pictures, "an interrupted run that goes on shows nothing twice"
    for name in ("epoch", "samples_per_second", "learning_rate", "system/cpu_utilization_percentage"):
        assert steps(name) == steps("loss"), name
    assert steps("by_threshold/v_rand") == list(range(0, 101, 10))
    tags = client.get_run(result.run_id).data.tags
    assert {"tessera.command", "tessera.config_digest", "tessera.version"} <= set(tags)
    assert find_model("models:/tessera-unet@champion", None).name == result.model_uri


def _assert_the_registered_model_predicts_what_the_bundle_does(result: TrainResult, home: Path) -> None:
    import mlflow

    with speaking_to(tracking_uri(None, home)):
        model = mlflow.pyfunc.load_model(result.model_uri)
    raw = np.random.default_rng(0).integers(0, 256, (1, 48, 40), dtype=np.uint8)
    network, contract = load_predictor(result.bundle)
    expected = predict_volume(network, raw, contract)
    np.testing.assert_allclose(model.predict({"raw": raw.astype(np.float32)}), expected, atol=1e-6)
    alone, _ = load_predictor(result.bundle, 1)
    assert np.abs(predict_volume(alone, raw, contract) - expected).max() > 1e-4, "it averages as the bundle says"


def _assert_a_refit_freezes_the_threshold(volumes: tuple[Path, Path], chosen: TrainResult, home: Path) -> None:
    again = train(_settings(volumes, name="refitted", refit="tiny", seed=7))
    assert again.contract.threshold == chosen.contract.threshold
    tags = MlflowClient(tracking_uri(None, home)).get_run(again.run_id).data.tags
    assert tags["tessera.refit_of"] == chosen.run_id
    assert len(again.contract.training["sections"]) == 6, "validation sections are learned from as well"
    assert again.contract.training["validation"] == {}
    with pytest.raises(ValueError, match="that run had other settings"):
        train(_settings(volumes, name="other", refit="tiny", loss=LossSettings(w0=5.0)))


def test_the_threshold_is_chosen_on_what_prediction_will_give(volumes: tuple[Path, Path], tmp_path: Path) -> None:
    data = _settings(volumes).data
    held_out = load_annotated(data.validation, data)
    folder = make_bundle(tmp_path / "bundle", symmetries=8)
    contract = load_contract(folder)
    judged = validate(Snapshot(0, contract.network, load_model(folder), None), contract, held_out)
    for count, agrees in ((None, True), (1, False)):
        predict, _ = load_predictor(folder, count)  # type: ignore[arg-type]
        predicted = predict_volume(predict, held_out.raw[0][np.newaxis], contract)[0]
        assert np.allclose(judged.arrays["probability"][0], predicted, atol=1e-6) == agrees


def test_turns_of_oblong_voxels_are_refused_before_training(volumes: tuple[Path, Path], learned: AnnotatedSet) -> None:
    with pytest.raises(ValueError, match=r"symmetries=8 turns sections by 90 degrees.*Try symmetries=4"):
        first_contract(_settings(volumes), replace(learned, voxel_size_nm=(50.0, 4.0, 8.0)))


def test_a_sample_is_a_function_of_seed_and_index(volumes: tuple[Path, Path], learned: AnnotatedSet) -> None:
    settings = _settings(volumes)
    source = sampling_source(settings, first_contract(settings, learned), learned)
    again = sampling_source(settings, first_contract(settings, learned), learned)
    for index in (0, 7, 10**9):
        one, other = make_sample(source, index), make_sample(again, index)
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert not np.array_equal(make_sample(source, 0)["image"], make_sample(source, 1)["image"])


def test_the_samples_of_a_step_are_named_with_their_sections(volumes: tuple[Path, Path], learned: AnnotatedSet) -> None:
    """Sections of one grey value each say by their samples where these were cut."""
    settings = _settings(volumes, augmentation=Augmentation())
    flat = replace(learned, raw=tuple(np.full_like(raw, 50 * z) for z, raw in enumerate(learned.raw)))
    source = sampling_source(settings, first_contract(settings, learned), flat)
    greys = [float(image[0, 0]) for image in source.images]
    told = samples_of_step(source, 2, range(8, 12))
    assert told.startswith("Step 2 was fed samples 8 to 11: ")
    named = {}
    for part in told.removesuffix(".").split(": ")[1].split("; "):
        numbers, section = part.split(" from raw.zarr section ")
        named |= {int(number): int(section) for number in numbers.split(", ")}
    assert sorted(named) == [8, 9, 10, 11] and len(set(named.values())) > 1
    assert named == {i: greys.index(float(make_sample(source, i)["image"][0, 0])) for i in named}


def test_validation_sections_are_whole_raw_and_never_sampled(volumes: tuple[Path, Path], learned: AnnotatedSet) -> None:
    """The ancestor validated on augmented copies of its training slices."""
    settings = _settings(volumes)
    held_out = load_annotated(settings.data.validation, settings.data)
    stored = create_or_open(volumes[0])
    assert [one.shape for one in held_out.raw] == [(SIZE, SIZE)] * 2
    assert all(np.array_equal(one, stored[z]) for one, z in zip(held_out.raw, (4, 5), strict=True))
    source = sampling_source(settings, first_contract(settings, learned), learned)
    assert len(source.images) == 4
    assert not any(np.array_equal(a, b) for a in learned.raw for b in held_out.raw)


def create_or_open(path: Path) -> np.ndarray:
    from tessera.storage.volumes import open_volume

    return open_volume(path).array[:]


def test_valid_padding_scores_the_crop_and_reads_real_context_around_it(
    volumes: tuple[Path, Path], learned: AnnotatedSet
) -> None:
    spec = UnetSpec(filters=4, depth=1, padding="valid")
    settings = _settings(
        volumes,
        network=spec,
        augmentation=Augmentation(),
        schedule=ScheduleSettings(steps=1, batch=1, crop_px=44),
    )
    contract = first_contract(settings, learned)
    source = sampling_source(settings, contract, learned)
    sample = make_sample(source, 3)
    margin = spec.arithmetic.axes[1].margin
    assert sample["image"].shape == (44 + 2 * margin,) * 2
    assert sample["target"].shape == sample["weights"].shape == (44, 44)
    inner = sample["image"][margin:-margin, margin:-margin]
    # Membrane is dark: the scored target lies on the pixels that it is about.
    assert inner[sample["target"] == 1].mean() < inner[sample["target"] == 0].mean() - 1
