"""Small real bundles: networks with all of their parts, untrained but not trivial."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from tessera.images.normalise import Normalisation
from tessera.images.symmetries import SymmetryCount
from tessera.model.bundle import Contract, save_bundle
from tessera.model.spec import UnetSpec
from tessera.model.unet import build_unet


def make_bundle(
    folder: Path,
    padding: Literal["valid", "same"] = "same",
    *,
    seed: int = 3,
    symmetries: SymmetryCount = 1,
    voxel_size_nm: tuple[float, float, float] = (50.0, 4.0, 4.0),
    input_sections: int = 1,
) -> Path:
    """A bundle for uint8 volumes, whose probabilities spread over (0, 1); threshold 0.5."""
    spec = UnetSpec(filters=3, depth=2, padding=padding, batch_norm=True, dropout=0.2, input_sections=input_sections)
    model = build_unet(spec, seed=seed)
    rng = np.random.default_rng(seed)
    model.set_weights([w + 0.1 * np.abs(rng.standard_normal(w.shape)).astype(np.float32) for w in model.get_weights()])
    _centre_logits(model)
    rule = Normalisation("global", 128.0, 60.0)
    contract = Contract(spec, rule, "uint8", voxel_size_nm, threshold=0.5, symmetries=symmetries)
    save_bundle(folder, model, contract)
    return folder


def _centre_logits(model: object) -> None:
    """Shift and scale the last layer, so that quantised probabilities tell voxels apart."""
    image = np.random.default_rng(0).standard_normal((1, 64, 64, model.input_shape[-1]), dtype=np.float32)  # type: ignore[attr-defined]
    logits = np.asarray(model(image, training=False))  # type: ignore[operator]
    last = model.get_layer("logits")  # type: ignore[attr-defined]
    kernel, bias = last.get_weights()
    gain = 1.5 / logits.std()
    last.set_weights([kernel * gain, (bias - logits.mean()) * gain])
