"""Volumes, models and regions that do not fit are refused before predict, segment or evaluate begin any work."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from terminal import refusal, tessera
from tessera.images.normalise import Normalisation
from tessera.model.bundle import Contract, save_contract
from tessera.model.spec import UnetSpec
from tessera.storage.volumes import open_volume, update_attributes
from tessera.workflows.predict import KIND
from volumes import grey, mask, put_volume

SHAPE = (6, 32, 40)
SERIAL = ("--engine", "serial", "--attempts", "1")
Capsys = pytest.CaptureFixture[str]
Refuse = Callable[..., str]


@pytest.fixture
def volumes(home: Path) -> Path:
    """Where volumes lie: em (raw), cells (mask) and membranes (probability, threshold 0.5)."""
    folder = home / "volumes"
    put_volume(folder / "em.zarr", grey(SHAPE))
    put_volume(folder / "cells.zarr", mask(SHAPE))
    put_volume(folder / "membranes.zarr", grey(SHAPE), kind=KIND, threshold=0.5)
    return folder


@pytest.fixture
def bundle(home: Path) -> Path:
    """A bundle whose weights nobody reads: what is refused is refused before they are."""
    folder = home / "bundle"
    folder.mkdir()
    (folder / "weights.keras").write_bytes(b"not read")
    spec, rule = UnetSpec(2, 1), Normalisation("global", 128.0, 60.0)
    save_contract(folder, Contract(spec, rule, "uint8", (50.0, 4.0, 4.0), threshold=0.5))
    return folder


@pytest.fixture
def predict(capsys: Capsys, home: Path, volumes: Path, bundle: Path) -> Refuse:
    def run(*words: object, volume: str = "em", model: object = bundle, output: str = "out") -> str:
        return refusal(
            capsys, home, "predict", "--volume", volume, "--model", model, "--output", output, *SERIAL, *words
        )

    return run


@pytest.fixture
def segment(capsys: Capsys, home: Path, volumes: Path) -> Refuse:
    def run(*words: object, volume: str = "membranes", output: str = "out") -> str:
        return refusal(capsys, home, "segment", "--volume", volume, "--output", output, *SERIAL, *words)

    return run


@pytest.fixture
def evaluate(capsys: Capsys, home: Path, volumes: Path) -> Refuse:
    def run(*words: object, volume: str = "membranes", labels: str = "cells") -> str:
        return refusal(capsys, home, "evaluate", "--volume", volume, "--labels", labels, *words)

    return run


# Models


def test_a_model_that_is_no_bundle_is_refused(predict: Refuse, home: Path, bundle: Path) -> None:
    for model in (home / "gone", home / "volumes" / "em.zarr"):
        told = predict(model=model)
        assert f"{model} is not a model bundle: weights.keras and contract.json not there." in told
        assert "Give the bundle folder that `tessera train` printed, or models:/NAME/VERSION" in told
    (bundle / "weights.keras").unlink()
    assert "is not a model bundle: weights.keras not there." in predict()


def test_a_model_that_is_not_registered_is_refused(
    capsys: Capsys, home: Path, volumes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--volume", "em", "--model", "models:/tessera-unet/7", "--output", "out", *SERIAL)
    answer = tessera(capsys, "predict", *words)
    assert (answer.code, answer.out) == (2, "")
    assert f"models:/tessera-unet/7 is not in the registry at sqlite:///{home}/mlflow.db" in answer.err
    assert not (volumes / "out.zarr").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not valid JSON (Expecting property name"),
        ("[1, 2]", "is damaged: "),
        ("{}", "contract format None is not 'tessera-bundle/2'"),
        ("\xff", "is damaged: "),
    ],
)
def test_a_contract_that_cannot_be_read_is_refused(predict: Refuse, bundle: Path, text: str, told: str) -> None:
    (bundle / "contract.json").write_text(text, encoding="latin-1")
    message = predict()
    assert f"{bundle}/contract.json is damaged: " in message and told in message
    assert message.endswith("Copy the bundle again from the run that trained it, or train anew.")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("axes", "absent"),
        ("threshold", "absent"),
        ("symmetries", "absent"),
        ("symmetries", 3),
        ("symmetries", [8]),
        ("network", None),
        ("network", {"filtres": 3}),
        ("network", {"filters": 0}),
        ("normalisation", {}),
        ("normalisation", {"rule": "global", "mean": 1, "std": 0}),
        ("voxel_size_nm", None),
        ("voxel_size_nm", [50, 4]),
    ],
)
def test_a_contract_with_a_bad_entry_is_refused(predict: Refuse, bundle: Path, key: str, value: Any) -> None:
    contract = json.loads((bundle / "contract.json").read_text())
    contract[key] = value
    if value == "absent":
        del contract[key]
    (bundle / "contract.json").write_text(json.dumps(contract))
    assert f"{bundle}/contract.json is damaged: " in predict()


# Volumes that do not fit the model


def test_another_dtype_or_voxel_size_names_both_sides(predict: Refuse, volumes: Path) -> None:
    put_volume(volumes / "deep.zarr", grey(SHAPE).astype(np.uint16))
    put_volume(volumes / "coarse.zarr", grey(SHAPE), (50, 8, 8))
    told = predict(volume="deep")
    assert "the volume's dtype is uint16, the model was trained on uint8. Probabilities would be meaningless." in told
    assert "Ingest the volume with its true voxel size and dtype, or pass --accept_mismatch true" in told
    told = predict(volume="coarse")
    assert "the volume's voxel size is (50.0, 8.0, 8.0) nm, the model wants (50.0, 4.0, 4.0) nm" in told


def test_an_unknown_voxel_size_is_refused(predict: Refuse, volumes: Path) -> None:
    zarr.create_array(volumes / "plain.zarr", shape=SHAPE, dtype="uint8", chunks=SHAPE)[:] = grey(SHAPE)
    told = predict(volume="plain")
    assert "the volume's voxel size is unknown, the model was trained on (50.0, 4.0, 4.0) nm" in told


def test_a_mismatch_is_accepted_aloud_on_request(
    predict: Refuse, volumes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_volume(volumes / "coarse.zarr", grey(SHAPE), (50, 8, 8))
    with caplog.at_level(logging.WARNING, "tessera"):
        told = predict("--accept_mismatch", "true", "--roi", "0:0,0:1,0:1", volume="coarse")
    assert "accepted although the volume's voxel size is (50.0, 8.0, 8.0) nm" in caplog.text
    assert told.startswith("roi='0:0,0:1,0:1' is empty"), "the next check refuses: the mismatch no longer does"


def test_sections_of_oblong_voxels_are_not_turned(predict: Refuse, volumes: Path) -> None:
    """The model's voxels are square; those of a volume accepted all the same need not be."""
    put_volume(volumes / "oblong.zarr", grey(SHAPE), (50, 4, 8))
    told = predict("--accept_mismatch", "true", "--symmetries", "8", volume="oblong")
    assert told.startswith("symmetries=8 turns sections by 90 degrees, and voxels of 4 x 8 nm (y, x) are not square")
    assert told.endswith("Try symmetries=4, the flips alone.")


@pytest.mark.parametrize("words", [(), ("--accept_mismatch", "true")])
def test_channels_are_refused_even_where_a_mismatch_is_accepted(
    predict: Refuse, volumes: Path, words: tuple[str, ...]
) -> None:
    put_volume(volumes / "two.zarr", grey((2, *SHAPE)))
    told = predict(*words, volume="two")
    assert ("axes are 'czyx', the model wants 'zyx'" if not words else "networks here read one channel") in told


# Regions, tiles, blocks


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--roi", "0:9,0:32,0:40"), "passes the volume [0:6, 0:32, 0:40]. Try 0:6,0:32,0:40."),
        (("--roi", "2:2,0:32,0:40"), "is empty, runs backwards or passes the volume"),
        (("--roi", "4:2,0:32,0:40"), "is empty, runs backwards or passes the volume"),
        (("--roi", "0-2,0-32,0-40"), "is not three ranges z, y, x. Try 0:6,0:32,0:40."),
        (("--tile", "[0,256,256]"), "tile=[0, 256, 256]: every extent, z, y, x, must be at least 1 voxel. Try [1, 512"),
        (
            ("--chunk", "[2,16,16]", "--shard", "[2,16,16]", "--block", "[2,24,16]"),
            "block=(2, 24, 16) is not a multiple of the output shard (2, 16, 16): two tasks would write one shard and "
            "lose data. Try block=(2, 32, 16).",
        ),
        (("--chunk", "[2,16,16]", "--shard", "[3,16,16]"), "two shards. Try shard (4, 16, 16)."),
        (("--block", "[0,16,16]"), "block=[0, 16, 16]: every extent, z, y, x, must be at least 1 voxel."),
    ],
)
def test_a_region_or_layout_that_does_not_fit_names_a_legal_one(
    predict: Refuse, words: tuple[str, ...], told: str
) -> None:
    assert told in predict(*words)


def test_the_block_that_a_refusal_names_is_legal(predict: Refuse) -> None:
    legal = ("--chunk", "[2,16,16]", "--shard", "[2,16,16]", "--block", "[2,32,16]")
    assert "tile=[0, 1, 1]" in predict(*legal, "--tile", "[0,1,1]")


@pytest.mark.parametrize("output", ["em", "em.zarr"])
@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_a_volume_is_never_predicted_onto_itself(predict: Refuse, output: str, overwrite: str) -> None:
    told = predict("--overwrite", overwrite, output=output)
    assert told.startswith(f"output={output} is the input itself ") and told.endswith("Try --output em-2.")


def test_an_output_that_tessera_did_not_make_is_left_alone(predict: Refuse, segment: Refuse, volumes: Path) -> None:
    (volumes / "thesis.zarr").mkdir()
    (volumes / "thesis.zarr" / "chapter1.txt").write_text("years of work")
    for run in (predict, segment):
        for overwrite in ("false", "true"):
            told = run("--overwrite", overwrite, output="thesis")
            assert "thesis.zarr is a folder that holds chapter1.txt that tessera did not make" in told


@pytest.mark.parametrize("command", ["predict", "segment", "evaluate"])
def test_a_missing_volume_is_named_with_the_places_looked_at(
    command: str, request: pytest.FixtureRequest, home: Path
) -> None:
    told = request.getfixturevalue(command)(volume="gone")
    assert told.startswith("gone does not exist: looked for ") and f"{home}/volumes/gone.zarr" in told


@pytest.mark.parametrize("command", ["predict", "segment", "evaluate"])
def test_a_half_written_volume_is_refused(command: str, request: pytest.FixtureRequest, volumes: Path) -> None:
    run = request.getfixturevalue(command)
    update_attributes(volumes / "membranes.zarr", complete=False)
    told = run(volume="membranes")
    assert "membranes.zarr is only half-written: blocks that are missing would read as zeros." in told
    assert "Run the command that makes it again; it does only what is missing." in told


# Segment


def test_grey_values_are_not_cut_into_cells(segment: Refuse, volumes: Path) -> None:
    told = segment(volume="em")
    assert "em.zarr is not membrane probability as `tessera predict` writes it (uint8, float16, float32)" in told
    assert told.endswith("Run tessera predict on it first.")
    put_volume(volumes / "float.zarr", grey(SHAPE).astype(np.float64), kind=KIND, threshold=0.5)
    assert "is not membrane probability" in segment(volume="float")


def test_without_a_threshold_one_is_asked_for(segment: Refuse, volumes: Path) -> None:
    update_attributes(volumes / "membranes.zarr", threshold=None)
    told = segment()
    assert "no threshold is known for " in told and told.endswith("its model chose none. Try --threshold 0.5.")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--threshold", "1.5"), "threshold=1.5 is no probability below 1: nothing would be cell. Try 0.5."),
        (
            ("--chunk", "[2,16,16]", "--shard", "[2,16,16]", "--block", "[3,16,16]"),
            "block=(3, 16, 16) is not a multiple of the output shard (2, 16, 16): two tasks would write one shard",
        ),
        (("--chunk", "[4,16,16]", "--shard", "[6,16,16]"), "Try shard (8, 16, 16)."),
    ],
)
def test_segment_settings_that_do_not_fit_are_refused(segment: Refuse, words: tuple[str, ...], told: str) -> None:
    assert told in segment(*words)


def test_segment_refuses_channels_and_its_own_input(segment: Refuse, volumes: Path) -> None:
    put_volume(volumes / "two.zarr", grey((2, *SHAPE)), kind=KIND, threshold=0.5)
    assert "two.zarr has shape (2, 6, 32, 40): cells are cut in z, y, x. Save one channel of it." in segment(
        volume="two"
    )
    assert "is the input itself" in segment("--overwrite", "true", output="membranes")
    assert np.array_equal(open_volume(volumes / "membranes.zarr").array[:], grey(SHAPE))


# Evaluate


def test_what_is_scored_must_be_probability_of_the_labels_volume(evaluate: Refuse, volumes: Path) -> None:
    assert "em.zarr is not membrane probability" in evaluate(volume="em")
    put_volume(volumes / "small.zarr", mask((6, 32, 32)))
    told = evaluate(labels="small")
    assert (
        "membranes.zarr has shape (6, 32, 40)" in told and "small.zarr have (6, 32, 32): both must be z, y, x" in told
    )
    assert "Give the labels of the same volume" in told


def test_channels_are_not_scored(evaluate: Refuse, volumes: Path) -> None:
    put_volume(volumes / "p2.zarr", grey((2, *SHAPE)), kind=KIND, threshold=0.5)
    put_volume(volumes / "l2.zarr", mask((2, *SHAPE)))
    assert "both must be z, y, x and equal" in evaluate(volume="p2", labels="l2")


def test_sections_that_are_marked_invalid_are_not_scored(evaluate: Refuse, volumes: Path) -> None:
    update_attributes(volumes / "membranes.zarr", invalid_sections=[1, 4])
    told = evaluate("--sections", "0-2")
    assert "sections [1] are marked invalid in " in told and told.endswith("leave them out of --sections.")
    update_attributes(volumes / "membranes.zarr", invalid_sections=list(range(6)))
    assert "is marked invalid: there is nothing to score." in evaluate()


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (
            mask(SHAPE).astype(np.float32),
            "labels of dtype float32 are not whole numbers: labels are names, not amounts.",
        ),
        (mask(SHAPE).astype(np.int16) - 1, "labels hold negative values, the least is -1"),
        (np.zeros(SHAPE, np.uint8), "hold only membrane in the chosen sections"),
        (np.full(SHAPE, 255, np.uint8), "hold only cell in the chosen sections"),
        (255 - mask(SHAPE), "are they inverted (0 = cell)? If so, pass --labels_are membranes"),
    ],
)
def test_labels_that_would_make_scores_meaningless_are_refused(
    evaluate: Refuse, volumes: Path, labels: Any, told: str
) -> None:
    put_volume(volumes / "bad.zarr", labels)
    assert told in evaluate(labels="bad")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--sections", "0-6"), "passes the volume, which has 6 sections, 0-5. Try '0-5'."),
        (("--threshold", "-1"), "threshold=-1.0 is no probability below 1. Try 0.5."),
    ],
)
def test_evaluate_settings_that_do_not_fit_are_refused(evaluate: Refuse, words: tuple[str, ...], told: str) -> None:
    assert told in evaluate(*words)


def test_valid_sections_are_scored_and_the_frozen_threshold_comes_first(capsys: Capsys, volumes: Path) -> None:
    update_attributes(volumes / "membranes.zarr", invalid_sections=[1, 4])
    answer = tessera(capsys, "evaluate", "--volume", "membranes", "--labels", "cells")
    assert answer.code == 0, answer.err
    scores = json.loads(answer.out)
    assert scores["sections"] == [0, 2, 3, 5] and scores["frozen_threshold"]["threshold"] == 0.5
    assert list(scores)[3:5] == ["frozen_threshold", "maximum_over_thresholds"]
