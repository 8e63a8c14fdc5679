"""Probability is stored as bytes or floats, and every command that reads it back gets the same probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundles import make_bundle
from terminal import refusal, tessera
from tessera.images.quantise import STORED_DTYPES, decode, encode, polarity_of
from tessera.model.predictor import load_predictor, predict_volume
from tessera.settings.view import ViewSettings
from tessera.storage.volumes import open_volume
from tessera.workflows.scene import find_scene
from tessera.workflows.section_views import View, picture_of
from volumes import grey, mask, put_volume

Capsys = pytest.CaptureFixture[str]
SHAPE = (2, 48, 80)
SERIAL = ("--engine", "serial", "--attempts", "1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def run(home: Path, capsys: Capsys) -> Any:
    """A command that must succeed; returns what it printed."""
    put_volume(home / "volumes" / "em.zarr", grey(SHAPE), kind="image")
    put_volume(home / "volumes" / "truth.zarr", mask(SHAPE), kind="labels")

    def command(*words: object) -> str:
        answer = tessera(capsys, *words)
        assert answer.code == 0, answer.err
        return answer.out.strip()

    return command


def test_what_is_stored_is_the_whole_section_s_probability_to_the_dtype_s_step(bundle: Path, run: Any) -> None:
    network, contract = load_predictor(bundle)
    whole = predict_volume(network, grey(SHAPE), contract)
    for dtype, step in (("uint8", 1 / 510 + 1e-5), ("float16", 2**-12 + 1e-5), ("float32", 1e-5)):
        words = ("--volume", "em", "--model", bundle, "--output", dtype, "--tile", "[1, 16, 32]")
        output = open_volume(run("predict", *words, "--output_dtype", dtype, *SERIAL))
        assert output.dtype.name == dtype
        assert output.attributes["polarity"] == polarity_of(dtype)  # type: ignore[arg-type]
        np.testing.assert_allclose(decode(output.array[:]), whole, atol=step, rtol=0)
        assert len(np.unique(output.array[:])) > 50


def test_another_dtype_is_another_job(bundle: Path, run: Any, home: Path, capsys: Capsys) -> None:
    words = ("predict", "--volume", "em", "--model", bundle, "--output", "out", *SERIAL)
    run(*words)
    told = tessera(capsys, *words, "--output_dtype", "float16")
    assert told.code == 2 and "dtype uint8, not float16: two jobs' results would be mixed" in told.err
    assert "uint8, float16, float32" in refusal(capsys, home, *words, "--output_dtype", "float64")


@pytest.fixture
def stored(run: Any, home: Path) -> Path:
    """One probability in each dtype: multiples of 1/8 are the same in floats, and next to nothing apart in bytes."""
    steps = np.random.default_rng(2).integers(0, 9, SHAPE) / np.float32(8)
    truth = mask(SHAPE)
    probability = np.where(truth == 0, np.maximum(steps, 0.75), np.minimum(steps, 0.25)).astype(np.float32)
    for dtype in STORED_DTYPES:
        put_volume(
            home / "volumes" / f"p-{dtype}.zarr",
            encode(probability, dtype),  # type: ignore[arg-type]
            kind="membrane probability",
            threshold=0.5,
        )
    return home / "volumes"


def test_segment_and_evaluate_give_the_same_from_every_dtype(stored: Path, run: Any) -> None:
    cells, scores = [], []
    for dtype in STORED_DTYPES:
        cells.append(open_volume(run("segment", "--volume", f"p-{dtype}", "--output", f"c-{dtype}", *SERIAL)).array[:])
        found = json.loads(run("evaluate", "--volume", f"p-{dtype}", "--labels", "truth"))
        scores.append(found["frozen_threshold"])
    for other in (1, 2):
        np.testing.assert_array_equal(cells[0], cells[other])
        assert scores[0] == scores[other]
    assert len(np.unique(cells[0])) > 20 and scores[0]["v_rand"] > 0.99


def test_pyramids_average_every_dtype_and_the_page_shows_it_alike(stored: Path, run: Any) -> None:
    pictures, coarse = [], []
    for dtype in STORED_DTYPES:
        run("pyramid", "--volume", f"p-{dtype}", "--levels", "1", "--engine", "serial")
        level = open_volume(stored / f"p-{dtype}.zarr", level=1)
        assert level.dtype.name == dtype
        coarse.append(decode(level.array[:]))
        scene = find_scene(ViewSettings(volume=f"p-{dtype}"))
        layer = scene.layer("probability")
        assert layer is not None
        pictures.append(picture_of(scene, layer, View(1)))
    np.testing.assert_allclose(coarse[0], coarse[2], atol=1 / 255)
    np.testing.assert_allclose(coarse[1], coarse[2], atol=2**-11)
    assert pictures[0] == pictures[1] == pictures[2]


def test_values_that_are_no_probability_are_not_cut_into_cells(stored: Path, home: Path, capsys: Capsys) -> None:
    put_volume(stored / "grey.zarr", grey(SHAPE).astype(np.float32), kind="membrane probability", threshold=0.5)
    answer = tessera(capsys, "segment", "--volume", "grey", "--output", "cells", *SERIAL)
    assert answer.code == 1 and "where probabilities lie in [0, 1]" in answer.err
    put_volume(stored / "deep.zarr", grey(SHAPE).astype(np.uint16), kind="membrane probability", threshold=0.5)
    told = refusal(capsys, home, "segment", "--volume", "deep", "--output", "cells", *SERIAL)
    assert "(uint8, float16, float32): its uint16 grey values would be cut into cells" in told
