"""2.5D end to end: the sections a network sees are the volume's, in training as in prediction, however it is cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bundles import make_bundle
from tessera.geometry.blocks import BlockGrid
from tessera.geometry.boxes import Box
from tessera.images.augment import Augmentation
from tessera.images.normalise import Normalisation
from tessera.images.quantise import quantise
from tessera.model.bundle import load_contract, load_model, save_contract
from tessera.model.optimiser import OptimiserSpec
from tessera.model.predictor import load_predictor, predict_box, predict_middle, predict_volume
from tessera.model.spec import UnetSpec
from tessera.model.training import FitPlan, Snapshot, fit
from tessera.settings.predict import PredictSettings, parse_roi
from tessera.settings.train import AnnotatedSections, DataSettings, ScheduleSettings, TrainSettings
from tessera.storage.volumes import create_volume, open_volume
from tessera.workflows.annotated import AnnotatedSet, load_annotated
from tessera.workflows.predict import predict
from tessera.workflows.training_loop import make_sample, sampling_source, validate
from tessera.workflows.training_plan import first_contract, load_for
from volumes import grey, mask, put_volume

SHAPE = (6, 59, 75)
LAYOUT = {"chunk": (2, 16, 16), "shard": (2, 32, 32)}
SERIAL = {"engine": "serial"}
WHOLE = {"chunk": SHAPE, "shard": SHAPE}


@pytest.fixture(scope="module", params=[(3, "same"), (5, "valid")], ids=["3", "5"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    sections, padding = request.param
    return make_bundle(tmp_path_factory.mktemp("bundle") / padding, padding, input_sections=sections)


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    return grey(SHAPE, seed=11)


def _put(path: Path, raw: np.ndarray, invalid: tuple[int, ...] = ()) -> Path:
    made = create_volume(
        path,
        raw.shape,
        np.uint8,
        voxel_size_nm=(50, 4, 4),
        attributes={"invalid_sections": list(invalid), "complete": True},
        **LAYOUT,
    )
    for _, box in BlockGrid(raw.shape, made.shard).boxes():
        made.write(box, raw[box.slices])
    return path


def _reflected(bundle: Path, raw: np.ndarray) -> np.ndarray:
    """The oracle: the whole volume padded by reflection, one pass for each section with its neighbours as channels."""
    network, contract = load_predictor(bundle)
    half, axis = contract.network.input_sections // 2, contract.network.arithmetic.axes[1]
    pads = [(half, half), *((axis.halo, axis.halo + -n % axis.period) for n in raw.shape[1:])]
    padded = np.pad(contract.normalisation.apply(raw), pads, mode="reflect")
    stacks = [np.stack(list(padded[z : z + 2 * half + 1]), axis=-1) for z in range(len(raw))]
    useful = np.concatenate([network(stack[np.newaxis]) for stack in stacks])
    return useful[:, axis.crop :, axis.crop :, 0][:, : raw.shape[1], : raw.shape[2]]


def _predict(volume: Path, bundle: Path, output: Path, **chosen: Any) -> np.ndarray:
    settings = PredictSettings(str(volume), str(bundle), str(output), **{**LAYOUT, **chosen})
    return open_volume(predict(settings)).array[:]


def _assert_same_voxels(stored: np.ndarray, probability: np.ndarray, *, levels: int = 50) -> None:
    difference = np.abs(stored.astype(int) - quantise(probability).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3
    assert len(np.unique(stored)) > levels, "a flat prediction would agree with anything"


# Prediction


def test_a_whole_volume_is_mirrored_at_its_first_and_last_section(bundle: Path, raw: np.ndarray) -> None:
    network, contract = load_predictor(bundle)
    np.testing.assert_allclose(predict_volume(network, raw, contract), _reflected(bundle, raw), atol=1e-5)


@pytest.mark.parametrize(("block", "tile"), [((1, 59, 75), (1, 32, 48)), ((2, 32, 48), (3, 40, 24))])
def test_blocks_split_along_z_see_real_neighbours_across_their_faces(
    bundle: Path, raw: np.ndarray, block: tuple[int, int, int], tile: tuple[int, int, int]
) -> None:
    network, contract = load_predictor(bundle)
    whole = predict_volume(network, raw, contract)
    for _, box in BlockGrid(SHAPE, block).boxes():
        part = predict_box(network, lambda b: raw[b.slices], SHAPE, box, tile, contract)
        np.testing.assert_allclose(part, whole[box.slices], atol=1e-5)


def test_each_channel_matters(bundle: Path, raw: np.ndarray) -> None:
    """A test of equality holds for a network that looks at the middle alone, too."""
    network, contract = load_predictor(bundle)
    whole, half = predict_volume(network, raw, contract), contract.network.input_sections // 2
    for offset in range(-half, half + 1):
        changed = raw.copy()
        changed[2 + offset] = grey(SHAPE[1:], seed=5)
        assert np.abs(predict_volume(network, changed, contract)[2] - whole[2]).max() > 1e-2
    changed = raw.copy()
    changed[2 + half + 1] = 0
    np.testing.assert_array_equal(predict_volume(network, changed, contract)[2], whole[2])


@pytest.mark.parametrize(
    "chosen",
    [{"tile": (3, 64, 64), "block": (4, 32, 96)}, {"tile": (6, 128, 128), **WHOLE}],
    ids=["split", "whole"],
)
def test_serial_jobs_give_the_reflected_volume_s_voxels(
    bundle: Path, raw: np.ndarray, tmp_path: Path, chosen: dict[str, Any]
) -> None:
    volume = _put(tmp_path / "raw.zarr", raw)
    stored = _predict(volume, bundle, tmp_path / "out.zarr", **SERIAL, **chosen)
    _assert_same_voxels(stored, _reflected(bundle, raw))


def test_a_region_sees_the_sections_beyond_it(bundle: Path, raw: np.ndarray, tmp_path: Path) -> None:
    text = "2:5,7:50,13:71"
    stored = _predict(_put(tmp_path / "raw.zarr", raw), bundle, tmp_path / "roi.zarr", roi=text, **SERIAL)
    _assert_same_voxels(stored, _reflected(bundle, raw)[parse_roi(text, SHAPE).slices])


def test_actors_give_the_reflected_volume_s_voxels(ray_session: None, raw: np.ndarray, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", input_sections=3)
    stored = _predict(_put(tmp_path / "raw.zarr", raw), bundle, tmp_path / "out.zarr", tile=(2, 32, 48), workers=2)
    _assert_same_voxels(stored, _reflected(bundle, raw))


def test_a_missing_section_is_no_neighbour(bundle: Path, raw: np.ndarray, tmp_path: Path) -> None:
    """What lies in a missing section changes no voxel, whatever the blocks are; without it the sections mirror."""
    outputs = {}
    for name, fill, chosen in (("zeros", 0, {}), ("white", 255, {"block": (6, 64, 96)})):
        holed = raw.copy()
        holed[3] = fill
        volume = _put(tmp_path / f"{name}.zarr", holed, invalid=(3,))
        outputs[name] = _predict(volume, bundle, tmp_path / f"{name}-out.zarr", **SERIAL, **chosen)
    assert not outputs["zeros"][3].any()
    _assert_same_voxels(outputs["white"], outputs["zeros"] / np.float32(255))
    network, contract = load_predictor(bundle)
    near = {3: [1, 2, 1], 5: [0, 1, 2, 1, 4]}[contract.network.input_sections]
    _assert_same_voxels(outputs["zeros"][2], predict_middle(network, raw[near], contract))


def test_symmetries_are_averaged_over_the_whole_stack(raw: np.ndarray, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", input_sections=3, symmetries=8)
    volume = _put(tmp_path / "raw.zarr", raw)
    stored = _predict(volume, bundle, tmp_path / "out.zarr", tile=(2, 32, 16), **SERIAL)
    _assert_same_voxels(stored, _reflected(bundle, raw), levels=10)


def test_each_neighbour_is_normalised_by_levels_of_its_own(raw: np.ndarray, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", input_sections=3)
    save_contract(bundle, replace(load_contract(bundle), normalisation=Normalisation("per_section", 0.5, 0.6)))
    drifted = (raw // np.array([4, 1, 2, 3, 1, 2])[:, None, None] + 20).astype(np.uint8)
    volume = _put(tmp_path / "raw.zarr", drifted)
    whole = predict_volume(*_order(bundle, drifted))
    stored = _predict(volume, bundle, tmp_path / "out.zarr", tile=(2, 32, 48), **SERIAL)
    _assert_same_voxels(stored, whole)
    stored = _predict(volume, bundle, tmp_path / "roi.zarr", roi="2:3,:,:", **SERIAL)
    _assert_same_voxels(stored, whole[2:3])
    assert set(open_volume(tmp_path / "roi.zarr").attributes["section_levels"]) == {"1", "2", "3"}


def test_a_neighbour_without_an_entry_in_the_table_is_refused(raw: np.ndarray, tmp_path: Path) -> None:
    """It would be shown as flat grey, and nothing would tell."""
    contract = load_contract(make_bundle(tmp_path / "bundle", input_sections=3))
    contract = replace(contract, normalisation=Normalisation("per_section", 0.5, 0.6))
    core = Box((2, 0, 0), (3, 16, 16))
    with pytest.raises(ValueError, match=r"sections \[3\] of .* have no entry in the table of grey levels"):
        predict_box(
            _unused, lambda b: raw[b.slices], SHAPE, core, (1, 16, 16), contract, {1: (9.0, 99.0), 2: (9.0, 99.0)}
        )


def _unused(tiles: np.ndarray) -> np.ndarray:
    raise AssertionError("it was predicted")


def _order(bundle: Path, raw: np.ndarray) -> tuple[Any, np.ndarray, Any]:
    network, contract = load_predictor(bundle)
    return network, raw, contract


def test_the_registered_model_s_code_predicts_what_the_bundle_does(bundle: Path, raw: np.ndarray) -> None:
    from tessera.tracking.pyfunc_model import BundleModel

    model = BundleModel()
    model.load_context(SimpleNamespace(artifacts={"weights_keras": str(bundle / "weights.keras")}))
    predicted = model.predict(None, {"raw": raw.astype(np.float32)})
    np.testing.assert_allclose(predicted, _reflected(bundle, raw), atol=1e-5)


def test_the_contract_says_how_many_sections_are_seen(bundle: Path) -> None:
    contract = load_contract(bundle)
    sections = contract.network.input_sections
    plain = contract.to_dict()
    assert plain["network"]["input_sections"] == sections > 1
    assert plain["layers"][0][1] == (sections, 3, 3)
    assert contract.network.arithmetic.halo == (sections // 2, 22, 22)


def test_a_stack_of_another_depth_is_refused(bundle: Path, raw: np.ndarray) -> None:
    network, contract = load_predictor(bundle)
    with pytest.raises(ValueError, match=r"a stack of 1 sections was given to a network that sees \d.*in the middle"):
        predict_middle(network, raw[:1], contract)


# Training


@pytest.fixture
def settings(raw: np.ndarray, tmp_path: Path) -> TrainSettings:
    """Sections 0, 1 and 4 to learn from, 3 held out, 2 missing, 5 not annotated at all."""
    volume = put_volume(tmp_path / "raw.zarr", raw, invalid_sections=[2])
    labels = put_volume(tmp_path / "labels.zarr", mask(SHAPE))
    data = DataSettings(
        [AnnotatedSections(str(volume), str(labels), "0-1,4")], [AnnotatedSections(str(volume), str(labels), "3")]
    )
    network = UnetSpec(filters=2, depth=1, padding="same", dropout=0.0, input_sections=3)
    return TrainSettings(data=data, network=network, augmentation=Augmentation(), schedule=ScheduleSettings(crop_px=32))


def _rewrite(settings: TrainSettings, voxels: np.ndarray) -> None:
    open_volume(settings.data.train[0].volume, writable=True).write(Box.whole(SHAPE), voxels)


def _learned(settings: TrainSettings) -> AnnotatedSet:
    return load_for(settings, settings.data.train)


def test_training_sees_the_neighbours_that_prediction_will_see(settings: TrainSettings, raw: np.ndarray) -> None:
    learned = _learned(settings)
    for stack, seen in zip(learned.stacks, ([1, 0, 1], [0, 1, 0], [3, 4, 5]), strict=True):
        np.testing.assert_array_equal(stack, raw[seen])
    assert all(np.array_equal(stack[1], own) for stack, own in zip(learned.stacks, learned.raw, strict=True))
    assert [one.shape for one in load_annotated(settings.data.train, settings.data).stacks] == [(1, *SHAPE[1:])] * 3


def test_the_fingerprint_covers_neighbours_that_nobody_annotated(settings: TrainSettings, raw: np.ndarray) -> None:
    before = _learned(settings).fingerprint
    alone = load_annotated(settings.data.train, settings.data).fingerprint
    changed = raw.copy()
    changed[5] += 1
    _rewrite(settings, changed)
    assert _learned(settings).fingerprint != before
    assert load_annotated(settings.data.train, settings.data).fingerprint == alone, "2D does not read it"


def test_one_field_warps_all_sections_alike_and_labels_with_them(settings: TrainSettings, raw: np.ndarray) -> None:
    """Channels that hold the same section stay the same under everything but noise, which is each one's own."""
    warped = Augmentation(elastic_sigma_px=2.0, rotation_degrees=180.0, flips=True, contrast=0.2, brightness=0.2)
    learned = _learned(settings)
    alike = replace(learned, neighbours=tuple(np.stack([own] * 3) for own in learned.raw))
    flat = replace(settings.network, input_sections=1)
    for augmentation, same in ((warped, True), (replace(warped, noise_sigma=0.1), False)):
        recipe = replace(settings, augmentation=augmentation)
        contract = first_contract(recipe, learned)
        sample = make_sample(sampling_source(recipe, contract, alike), 3)
        assert sample["image"].shape == (32, 32, 3)
        assert all(np.array_equal(sample["image"][..., 1], sample["image"][..., c]) == same for c in (0, 2))
        alone = make_sample(sampling_source(replace(recipe, network=flat), contract, replace(alike, neighbours=())), 3)
        np.testing.assert_array_equal(sample["target"], alone["target"])
        if same:
            np.testing.assert_allclose(sample["image"][..., 1], alone["image"], atol=1e-4)


def test_a_fit_learns_from_all_channels_and_is_judged_as_prediction_does(
    settings: TrainSettings, raw: np.ndarray, tmp_path: Path
) -> None:
    learned, held_out = _learned(settings), load_for(settings, settings.data.validation)
    contract = first_contract(settings, learned)
    source, kept = sampling_source(settings, contract, learned), []

    def batches(first: int) -> Any:
        for step in range(first, 2):
            samples = [make_sample(source, 2 * step + k) for k in range(2)]
            yield {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    def keep(snapshot: Snapshot) -> None:
        snapshot.save(tmp_path / "checkpoint", contract)
        kept.append(validate(snapshot, contract, held_out))

    plan = FitPlan(2, 1, 2, seed=5)
    fit(batches, settings.network, OptimiserSpec(), plan, on_step=lambda line: None, on_checkpoint=keep)
    bundle = tmp_path / "checkpoint" / "bundle"
    assert load_model(bundle).get_layer("down0a").get_weights()[0].shape == (3, 3, 3, 2)
    network, loaded = load_predictor(bundle)
    box = parse_roi("3:4,:,:", SHAPE)
    predicted = predict_box(network, lambda b: raw[b.slices], SHAPE, box, (1, 64, 80), loaded, missing={2})
    np.testing.assert_allclose(kept[0].arrays["probability"][0], predicted[0], atol=1e-5)
    np.testing.assert_array_equal(kept[0].arrays["raw"][0], raw[3])


def test_a_neighbour_without_grey_levels_is_refused_before_training(settings: TrainSettings, raw: np.ndarray) -> None:
    blank = raw.copy()
    blank[5] = 0
    _rewrite(settings, blank)
    _learned(settings)
    with pytest.raises(ValueError, match=r"sections 1 of the neighbours of raw.zarr section 4 .* hold next to nothing"):
        _learned(replace(settings, normalisation="per_section"))


@pytest.mark.parametrize(("sections", "instead"), [(2, 3), (0, 1), (-3, 1)])
def test_a_number_of_sections_without_a_middle_is_refused(sections: int, instead: int) -> None:
    with pytest.raises(ValueError, match=rf"input_sections={sections}: .*middle one.*Try {instead}\."):
        UnetSpec(input_sections=sections)
