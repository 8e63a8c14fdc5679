"""What a weights file may hold: the layers that tessera's networks are made of, and nothing that runs code.

Keras' safe mode refuses lambdas. Whatever else a file names is looked up among all that is importable, with arguments
of the file's choosing; a bundle that somebody sent is therefore read as a list first, and built only from known parts.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEMBERS = frozenset({"metadata.json", "config.json", "model.weights.h5"})
_LAYERS = frozenset(
    {
        *("Activation", "BatchNormalization", "Concatenate", "Conv2D", "Conv2DTranspose", "Cropping2D", "Dropout"),
        *("InputLayer", "MaxPooling2D", "ReLU"),
    }
)
_PLAIN = frozenset({"DTypePolicy", "Functional", "__keras_tensor__"})
_INITIALIZERS = "keras.initializers"


def check_safe(path: Path) -> None:
    """Refuse a weights file with members or classes that no network of tessera's has.

    Raises:
      ValueError: it is no archive, or holds something else; says what.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            strange = sorted(set(names) - MEMBERS) or [name for name in MEMBERS if names.count(name) > 1]
            config = {} if strange else json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise ValueError(
            f"{path} cannot be loaded: {error}. Pickles of other frameworks are never opened; a bundle "
            "of ours is damaged; export it again."
        ) from error
    if strange:
        raise ValueError(
            f"{path} holds {', '.join(strange[:3])}, twice or at all as no bundle of tessera's does: it would be "
            "unpacked unseen. Get the bundle from the run that trained it."
        )
    foreign = sorted({name for name, module in _classes(config) if not _is_known(name, module)})
    if foreign:
        raise ValueError(
            f"{path} is built of {', '.join(foreign[:3])}, which no network of tessera's has: loading it could run "
            "code of its maker's. Get the bundle from the run that trained it."
        )


def _classes(value: Any) -> Iterator[tuple[str, str]]:
    """(class, module) of everything that loading would look up, whatever it is nested in."""
    if isinstance(value, dict):
        if "class_name" in value:
            # A registered name is looked up before the class, among what other packages have registered.
            registered = value.get("registered_name") or value["class_name"]
            yield str(value["class_name"]), str(value.get("module") or "keras")
            yield str(registered), str(value.get("module") or "keras")
        for inner in value.values():
            yield from _classes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _classes(inner)


def _is_known(name: str, module: str) -> bool:
    if module == _INITIALIZERS:
        return name.isidentifier()
    return module.split(".", 1)[0] == "keras" and name in _LAYERS | _PLAIN
