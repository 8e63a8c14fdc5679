"""A weights file is told to be whole and of its contract's network without loading it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bundles import make_bundle
from tessera.model.bundle import load_contract
from tessera.model.spec import UnetSpec
from tessera.model.weights_file import check_weights, layers_of_spec


@pytest.mark.parametrize(("padding", "sections"), [("valid", 1), ("same", 1), ("same", 3)])
def test_what_keras_writes_is_the_contract_s_network_and_no_other(tmp_path: Path, padding: str, sections: int) -> None:
    bundle = make_bundle(tmp_path / "b", padding, input_sections=sections)  # type: ignore[arg-type]
    spec = load_contract(bundle).network
    check_weights(bundle, spec)
    for other in (replace(spec, filters=4), replace(spec, depth=3), replace(spec, input_sections=5)):
        with pytest.raises(ValueError, match=r"holds another network than its contract says: 2 poolings, 3 filters"):
            check_weights(bundle, other)
    weights = bundle / "weights.keras"
    content = weights.read_bytes()
    middle = len(content) // 2
    weights.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    with pytest.raises(ValueError, match=r"weights\.keras is damaged \(.*Copy the bundle again from the run"):
        check_weights(bundle, spec)


def test_the_paper_s_network_has_23_convolutions() -> None:
    """Ronneberger 2015, section 2: "In total the network has 23 convolutional layers"."""
    assert sum(layers_of_spec(UnetSpec(64, 4)).values()) == 23
