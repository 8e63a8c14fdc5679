"""The bundle: what training writes, inference reads, and nothing that does not fit passes."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bundles import make_bundle
from tessera.model.bundle import Contract, bundle_digest, check_fit, load_contract, load_model
from tessera.model.predictor import load_predictor


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "b")


def test_a_contract_survives_json(bundle: Path) -> None:
    contract = load_contract(bundle)
    assert Contract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract
    assert contract.to_dict()["layers"][0] == ["conv", (1, 3, 3), (1, 1, 1), "same"]
    averaging = replace(contract, symmetries=8)
    assert Contract.from_dict(json.loads(json.dumps(averaging.to_dict()))) == averaging != contract


def test_training_and_inference_normalise_alike(bundle: Path) -> None:
    _, contract = load_predictor(bundle)
    raw = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(contract.normalisation.apply(raw), (raw.astype(np.float32) - 128) / 60)


def test_the_digest_tells_bundles_apart(bundle: Path, tmp_path: Path) -> None:
    assert bundle_digest(bundle) == bundle_digest(bundle)
    other = make_bundle(tmp_path / "other", seed=8)
    assert bundle_digest(other) != bundle_digest(bundle)


def _fit(bundle: Path, **changes: object) -> list[str]:
    facts = {"dtype": np.dtype("uint8"), "axes": "zyx", "voxel_size_nm": (50.0, 4.0, 4.0), **changes}
    return check_fit(load_contract(bundle), **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": np.dtype("uint16")}, "the volume's dtype is uint16, the model was trained on uint8"),
        ({"axes": "czyx"}, "the volume's axes are 'czyx', the model wants 'zyx'"),
        (
            {"voxel_size_nm": (40.0, 8.0, 8.0)},
            r"voxel size is \(40.0, 8.0, 8.0\) nm, the model wants \(50.0, 4.0, 4.0\)",
        ),
        ({"voxel_size_nm": None}, "voxel size is unknown"),
    ],
)
def test_a_volume_that_disagrees_is_refused_with_both_sides_named(
    bundle: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        _fit(bundle, **changes)
    assert len(_fit(bundle, accept_mismatch=True, **changes)) == 1
    assert _fit(bundle) == []


def test_what_is_not_a_bundle_is_named(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"weights.keras and contract.json not there"):
        load_contract(tmp_path)
    broken = make_bundle(tmp_path / "broken")
    (broken / "contract.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_contract(broken)
    (broken / "contract.json").write_text('{"format": "other/9"}')
    with pytest.raises(ValueError, match="format 'other/9' is not 'tessera-bundle/2'"):
        load_contract(broken)
    (broken / "weights.keras").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"cannot be loaded.*damaged; export it again"):
        load_model(broken)


def test_a_contract_that_does_not_say_what_to_average_over_says_how_to_mend_it(bundle: Path) -> None:
    plain = load_contract(bundle).to_dict()
    earlier = {name: value for name, value in plain.items() if name != "symmetries"} | {"format": "tessera-bundle/1"}
    with pytest.raises(ValueError, match=r'set "format" to "tessera-bundle/2" and add "symmetries": 1\.'):
        Contract.from_dict(earlier)
    assert Contract.from_dict(earlier | {"format": "tessera-bundle/2", "symmetries": 1}) == load_contract(bundle)


def test_a_contract_never_turns_voxels_that_are_not_square(bundle: Path) -> None:
    contract = load_contract(bundle)
    with pytest.raises(ValueError, match=r"voxels of 4 x 8 nm \(y, x\) are not square.*Try symmetries=4"):
        replace(contract, voxel_size_nm=(50.0, 4.0, 8.0), symmetries=8)
    assert replace(contract, voxel_size_nm=(50.0, 4.0, 8.0), symmetries=4).symmetries == 4


def test_code_in_a_model_file_is_not_run(bundle: Path, tmp_path: Path) -> None:
    """A layer that carries pickled code is refused, before Keras and its safe mode see it."""
    import keras

    inputs = keras.Input((4,))
    evil = keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2)(inputs))
    folder = tmp_path / "evil"
    folder.mkdir()
    evil.save(folder / "weights.keras")
    assert zipfile.is_zipfile(folder / "weights.keras")
    with pytest.raises(ValueError, match="is built of Lambda"):
        load_model(folder)
