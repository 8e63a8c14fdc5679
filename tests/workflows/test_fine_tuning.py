"""Training from a trained model: what carries over, what is refused, and where the lineage leads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from bundles import make_bundle
from learning import learned, phantom_sections, scores
from terminal import refusal
from tessera.images.augment import Augmentation
from tessera.images.normalise import Normalisation
from tessera.images.phantom import Phantom
from tessera.model.bundle import load_contract, load_model, save_contract
from tessera.model.optimiser import OptimiserSpec
from tessera.model.spec import UnetSpec
from tessera.model.training import FitPlan, Snapshot, fit
from tessera.settings.train import AnnotatedSections, DataSettings, ScheduleSettings, TrainSettings
from tessera.tracking.models import register_bundle
from tessera.tracking.pages import NOTE
from tessera.tracking.runs import tracked_run, tracking_uri
from tessera.workflows.annotated import AnnotatedSet
from tessera.workflows.fine_tuning import inherit, parent_of
from tessera.workflows.models import find_model
from tessera.workflows.train import train
from tessera.workflows.training_plan import first_contract
from volumes import grey, mask, put_volume

NETWORK = UnetSpec(3, 2, "same", batch_norm=True, dropout=0.2)
"""That of `make_bundle`."""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "parent")


def _begun(**more: Any) -> tuple[Snapshot, list[Any]]:
    """A network after one step of rate 0, which moves no weight, and those weights."""
    image = np.random.default_rng(0).standard_normal((2, 16, 16)).astype(np.float32)
    batch = {"image": image, "target": (image > 0).astype(np.uint8), "weights": np.ones_like(image)}
    still = OptimiserSpec("sgd", learning_rate=1e-30, warmup_steps=0, schedule="constant")
    kept: list[Snapshot] = []
    settings = {"spec": NETWORK, "optimiser": still, **more}
    fit(
        lambda first: iter([batch]),
        plan=FitPlan(1, 1, 1, 5),
        on_step=lambda _: None,
        on_checkpoint=kept.append,
        **settings,
    )
    return kept[0], [np.asarray(v) for v in kept[0].model.trainable_variables]


# The network


def test_training_begins_with_the_bundles_weights_and_statistics(bundle: Path) -> None:
    parent = load_model(bundle)
    averaging = OptimiserSpec("sgd", 1e-30, warmup_steps=0, ema_momentum=0.9)
    for more in ({}, {"optimiser": averaging}):
        snapshot, weights = _begun(start_from=bundle, **more)
        for mine, theirs in zip(weights, parent.trainable_variables, strict=True):
            np.testing.assert_allclose(mine, np.asarray(theirs), atol=1e-6)
        if not more:  # an average's statistics are measured anew
            mean, was = (np.asarray(_first_norm(model).moving_mean) for model in (snapshot.model, parent))
            # One step moves them by a twentieth of the way to the batch's, which are near 0.
            assert 0 < np.abs(mean - was).max() < 0.2 * np.abs(was).max()


def _first_norm(model: Any) -> Any:
    return next(layer for layer in model.layers if layer.name == "down0a_norm")


def test_padding_and_dropout_are_free(bundle: Path) -> None:
    for network in (replace(NETWORK, dropout=0.0), replace(NETWORK, dropout=0.5)):
        assert parent_of(TrainSettings(start_from=str(bundle), network=network)) is not None
    _, weights = _begun(spec=replace(NETWORK, dropout=0.0), start_from=bundle)
    np.testing.assert_allclose(weights[0], np.asarray(load_model(bundle).trainable_variables[0]), atol=1e-6)


def test_another_network_is_refused_with_what_differs_and_what_to_set(bundle: Path) -> None:
    with pytest.raises(
        ValueError, match=r"network\.filters=12 where it has 3 and network\.depth=3 where it has 2"
    ) as told:
        parent_of(TrainSettings(start_from=str(bundle)))
    assert str(told.value).endswith("Try --network.filters 3 --network.depth 2.")
    with pytest.raises(ValueError, match=r"Try --network\.batch_norm true\.$"):
        parent_of(TrainSettings(start_from=str(bundle), network=replace(NETWORK, batch_norm=False)))


def test_weights_that_are_not_those_of_the_contract_are_refused(bundle: Path) -> None:
    with pytest.raises(
        ValueError, match=r"holds \d+ arrays of weights and this network wants \d+, of other shapes from"
    ):
        _begun(spec=replace(NETWORK, filters=4), start_from=bundle)


# Normalisation


@pytest.fixture
def sections() -> AnnotatedSet:
    return phantom_sections(0, 2, 64)


def test_grey_statistics_are_the_new_sections_unless_kept(bundle: Path, sections: AnnotatedSet) -> None:
    settings = TrainSettings(network=NETWORK)
    contract, parent = first_contract(settings, sections), find_model(str(bundle), None)
    assert inherit(contract, parent, keep_normalisation=False).normalisation == contract.normalisation
    kept = inherit(contract, parent, keep_normalisation=True)
    assert kept.normalisation == Normalisation("global", 128.0, 60.0) != contract.normalisation
    assert kept.training["started_from"] == {"model": str(bundle), "digest": parent.digest, "run_id": None}
    assert kept.training["fingerprint"] == contract.training["fingerprint"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"input_dtype": "uint16"}, r"uint16 grey values under the rule global, these sections are uint8 under global"),
        (
            {"normalisation": Normalisation("per_section", 0.5, 0.2)},
            r"sections of uint8 and --normalisation per_section",
        ),
    ],
)
def test_statistics_of_another_kind_cannot_be_kept(
    bundle: Path, sections: AnnotatedSet, change: dict[str, Any], told: str
) -> None:
    save_contract(bundle, replace(load_contract(bundle), **change))
    contract, parent = first_contract(TrainSettings(), sections), find_model(str(bundle), None)
    with pytest.raises(ValueError, match=told):
        inherit(contract, parent, keep_normalisation=True)
    assert inherit(contract, parent, keep_normalisation=False).normalisation == contract.normalisation


def test_other_voxels_are_accepted_aloud(
    bundle: Path, sections: AnnotatedSet, caplog: pytest.LogCaptureFixture
) -> None:
    contract = replace(first_contract(TrainSettings(), sections), voxel_size_nm=(40.0, 8.0, 8.0))
    with caplog.at_level("WARNING", "tessera"):
        assert inherit(contract, find_model(str(bundle), None), keep_normalisation=False).voxel_size_nm[0] == 40
    assert "learned from voxels of (50.0, 4.0, 4.0) nm, these sections have (40.0, 8.0, 8.0) nm" in caplog.text


# The command


@pytest.fixture
def data(home: Path) -> DataSettings:
    """Two sections to learn from, of which a part is unknown, and one held out."""
    shape = (3, 64, 64)
    labels = np.where(np.arange(64) < 40, mask(shape), 77).astype(np.uint8)
    raw = np.where(mask(shape) > 0, 150, 60).astype(np.uint8) + grey(shape) % 40
    volume, labels_ = (put_volume(home / "volumes" / f"{n}.zarr", v) for n, v in (("em", raw), ("some", labels)))
    parts = [[AnnotatedSections(str(volume), str(labels_), chosen)] for chosen in ("0-1", "2")]
    return DataSettings(*parts, unknown_label=77)


@pytest.mark.parametrize(
    ("model", "told"),
    [("nowhere", "nowhere is not a model bundle"), ("models:/gone/1", "models:/gone/1 is not in the registry at ")],
)
def test_a_missing_parent_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str],
    home: Path,
    data: DataSettings,
    model: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tessera.workflows.train.tracked_run", lambda *_, **__: pytest.fail("a run was begun"))
    parts = [json.dumps([vars(one) for one in part]) for part in (data.train, data.validation)]
    words = ("--data.train", parts[0], "--data.validation", parts[1], "--data.unknown_label", 77, "--start_from", model)
    assert told in refusal(capsys, home / "volumes", "train", *words)


@pytest.mark.slow
def test_a_fine_tuned_run_and_its_parent_lead_to_each_other(
    ray_session: None, home: Path, data: DataSettings, tmp_path: Path
) -> None:
    uri = tracking_uri(None, home)
    with tracked_run(uri, "tessera", "parent", {}, {}, home) as run:
        bundle = make_bundle(tmp_path / "parent")
        save_contract(bundle, load_contract(bundle).with_training(0.5, run_id=run.run_id))
        parent = register_bundle(run, bundle, "parents", ["numpy"])
    settings = TrainSettings(
        name="child",
        start_from=parent,
        data=data,
        network=NETWORK,
        augmentation=Augmentation(),
        optimiser=OptimiserSpec(learning_rate=1e-6, warmup_steps=0),
        schedule=ScheduleSettings(steps=2, batch=2, crop_px=32, log_every=1, checkpoint_every=2),
    )
    result = train(settings)
    for mine, theirs in zip(
        load_model(result.bundle).trainable_variables, load_model(bundle).trainable_variables, strict=True
    ):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(theirs), atol=1e-4)
    assert result.contract.training["started_from"]["model"] == parent
    assert result.contract.normalisation != load_contract(bundle).normalisation
    client = MlflowClient(uri)
    child, older = client.get_run(result.run_id), client.get_run(run.run_id)
    assert child.data.tags["tessera.parent_model"] == parent
    assert child.data.tags["tessera.fine_tuned_from"] == run.run_id
    assert run.run_id in child.data.tags[NOTE] and result.run_id in older.data.tags[NOTE]
    assert [model.model_id for model in child.inputs.model_inputs] == [older.outputs.model_outputs[0].model_id]
    version = client.get_model_version("parents", "1")
    assert f"fine-tuned by [child](#/experiments/{child.info.experiment_id}/runs/{result.run_id}" in version.description
    assert version.tags == {f"tessera.fine_tuned_by.{result.run_id[:8]}": result.run_id}
    assert version.description.startswith("Membrane probability of raw sections"), "what it said before stays"


# What it is for


@pytest.mark.slow
def test_two_sections_of_another_microscope_are_learned_faster_from_a_parent(tmp_path: Path) -> None:
    """Another tissue with inverted contrast: better than the parent unchanged, and than as many steps from chance."""
    settings = TrainSettings(
        network=UnetSpec(8, 3, "same", batch_norm=True, dropout=0.0),
        augmentation=Augmentation(flips=True, rotate90=True, contrast=0.1, brightness=0.1),
        optimiser=OptimiserSpec(learning_rate=1e-2, warmup_steps=10),
        schedule=ScheduleSettings(steps=80, batch=4, crop_px=96),
    )
    home_lab = phantom_sections(0, 6)
    parent = learned(tmp_path / "parent", settings, first_contract(settings, home_lab), home_lab)
    two, held_out = (_inverted(phantom_sections(first, 2, phantom=Phantom(7))) for first in (40, 50))
    few = replace(
        settings,
        schedule=replace(settings.schedule, steps=30),
        optimiser=OptimiserSpec(learning_rate=3e-3, warmup_steps=5),
    )
    contract = first_contract(few, two)
    found = {
        "parent": scores(parent, held_out),
        "parent, new statistics": scores(parent, held_out, normalisation=contract.normalisation),
        "from chance": scores(learned(tmp_path / "chance", few, contract, two), held_out),
        "fine-tuned": scores(learned(tmp_path / "tuned", few, contract, two, parent), held_out),
    }
    print({name: (round(one["v_rand"], 4), round(one["pixel_error"], 4)) for name, one in found.items()})
    best = found.pop("fine-tuned")
    assert all(best["v_rand"] > one["v_rand"] and best["pixel_error"] < one["pixel_error"] for one in found.values())


def _inverted(sections: AnnotatedSet) -> AnnotatedSet:
    rng = np.random.default_rng(5)
    noisy = [255 - raw + rng.normal(0, 6, raw.shape) for raw in sections.raw]
    return replace(sections, raw=tuple(np.clip(raw, 0, 255).astype(np.uint8) for raw in noisy))
