"""A bundle's weights file, looked at without Keras: whole, and of the contract's network.

Loading it takes TensorFlow, a dozen seconds and a worker. What is damaged or another network's is told before that.
"""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tessera.model.bundle import WEIGHTS
from tessera.model.safe_layers import check_safe
from tessera.model.spec import UnetSpec

_CONFIG, _VALUES = "config.json", "model.weights.h5"
_CONVOLUTIONS = ("Conv2D", "Conv2DTranspose")
Layers = Counter[tuple[str, int, int]]
"""How many convolutions there are of each class, number of filters and kernel extent."""


def check_weights(folder: Path, network: UnetSpec) -> None:
    """Refuse a weights file that is damaged, not of the contract's network, or of parts that tessera's never have.

    Raises:
      ValueError: says what is wrong.
    """
    path = folder / WEIGHTS
    try:
        config = _config(path)
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({str(error).rstrip('.')}): it cannot be loaded. Copy the bundle again from the run "
            "that trained it, or train anew."
        ) from None
    inputs, found = layers_of(config)
    wanted = layers_of_spec(network)
    if found != wanted or inputs != network.input_sections:
        raise ValueError(
            f"{path} holds another network than its contract says: {_told(found, inputs)}; the contract's has "
            f"{_told(wanted, network.input_sections)}. Its halo would be wrong. Copy both files of the bundle from one "
            "run."
        )
    check_safe(path)


def _config(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        missing = [name for name in (_CONFIG, _VALUES) if name not in archive.namelist()]
        if missing:
            raise ValueError(f"{' and '.join(missing)} not in it")
        broken = archive.testzip()
        if broken is not None:
            raise ValueError(f"{broken} fails its checksum")
        config: dict[str, Any] = json.loads(archive.read(_CONFIG))
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise ValueError(f"{_CONFIG} describes no network")
    return config


def layers_of(config: dict[str, Any]) -> tuple[int | None, Layers]:
    """Input channels and convolutions of a network, as Keras describes it."""
    found, inputs = Layers(), None
    for kind, own in _layers(config["config"]):
        if kind == "InputLayer":
            inputs = (own.get("batch_shape") or [None])[-1]
        elif kind in _CONVOLUTIONS:
            found[kind, int(own["filters"]), int(own["kernel_size"][0])] += 1
    return inputs, found


def _layers(network: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(class, settings) of each layer, those inside a nested network included."""
    for layer in network.get("layers", []):
        own = layer.get("config", {})
        yield layer.get("class_name", ""), own
        yield from _layers(own)


def layers_of_spec(spec: UnetSpec) -> Layers:
    """The convolutions of the graph that `build_unet` makes of a spec.

    >>> sorted(layers_of_spec(UnetSpec(filters=8, depth=1)).items())  # doctest: +NORMALIZE_WHITESPACE
    [(('Conv2D', 1, 1), 1), (('Conv2D', 8, 3), 4), (('Conv2D', 16, 3), 2), (('Conv2DTranspose', 8, 2), 1)]
    """
    found = Layers({("Conv2D", 1, 1): 1, ("Conv2D", spec.filters << spec.depth, 3): 2})
    for level in range(spec.depth):
        found["Conv2D", spec.filters << level, 3] += 4
        found["Conv2DTranspose", spec.filters << level, 2] += 1
    return found


def _told(layers: Layers, inputs: int | None) -> str:
    widths = sorted(filters for kind, filters, _ in layers if kind == "Conv2DTranspose")
    first = widths[0] if widths else 0
    return f"{len(widths)} poolings, {first} filters at the first level, {inputs} input channels"
