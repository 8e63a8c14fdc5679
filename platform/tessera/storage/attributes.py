"""The attributes of a volume's group: the mark that tessera made it, what a job notes there, and its list of levels.

They lie in one document, `zarr.json` (OME-Zarr 0.5) or `.zattrs` (0.4), which is replaced whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tessera.storage.drafts import ROOTS
from tessera.storage.locations import Place, place_of
from tessera.storage.objects import read_bytes, write_bytes
from tessera.storage.ome import Level, OmeZarr, image_attributes, parse_image


def is_ours(place: Place) -> bool:
    """Whether a place holds a volume that tessera made: its attributes hold a `tessera` entry with our mark."""
    return volume_id(place) is not None


def volume_id(place: Place) -> str | None:
    """The random id that `create_volume` gave a volume; None where there is no volume of ours.

    Raises:
      OSError: a store cannot be reached, or refuses: whether there is one is then unknown.
    """
    try:
        return str(_attributes(*_root(place))["tessera"]["id"])
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, KeyError, TypeError):
        return None


def update_attributes(place: Place | str, **values: Any) -> dict[str, Any]:
    """Set entries of a volume's `tessera` attribute, keeping the others; the document is replaced in one step.

    Only the driver calls this: two writers at once would lose one's entries.

    Args:
      place: a volume that `create_volume` made.
      values: JSON values by name.

    Returns:
      All entries as they are now.

    Raises:
      ValueError: the volume is not ours, or a value is not JSON.
    """
    where, name, document = _own_root(place)
    own: dict[str, Any] = _attributes(name, document)["tessera"]
    own.update(checked_json(values))
    write_bytes(where / name, json.dumps(document, indent=2).encode())
    return own


def set_levels(place: Place | str, levels: Sequence[Level]) -> None:
    """Replace the list of a volume's levels, fine to coarse; its axes, name and channels stay.

    Only the driver calls this, once the levels' voxels are there: a reader must not find half of one.

    Raises:
      ValueError: the volume is not ours.
    """
    where, name, document = _own_root(place)
    attributes = _attributes(name, document)
    image = parse_image(attributes)
    version: OmeZarr = "0.4" if name == ".zattrs" else "0.5"
    image_now = image_attributes(
        image.axes,
        levels,
        name=image.name,
        channels=image.channels,
        channel_max=image.channel_max,
        ome_zarr=version,
    )
    if "ome" in image_now:  # what else is said there, as of labels, stays
        image_now = {"ome": {**attributes["ome"], **image_now["ome"]}}
    attributes.update(image_now)
    write_bytes(where / name, json.dumps(document, indent=2).encode())


def checked_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, if JSON holds them.

    Raises:
      ValueError: names one that it does not.
    """
    for key, value in values.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"attribute {key}={value!r} is not JSON ({error}): it could not be read back. Use plain numbers, "
                "strings, lists and dictionaries."
            ) from error
    return dict(values)


def _own_root(place: Place | str) -> tuple[Place, str, dict[str, Any]]:
    where = place_of(place)
    if not is_ours(where):
        raise ValueError(f"{where} is no volume of tessera's: its attributes are left alone.")
    return where, *_root(where)


def _root(place: Place) -> tuple[str, dict[str, Any]]:
    """Name and content of the document that holds the group's attributes."""
    for name in ROOTS:
        try:
            content = json.loads(read_bytes(place / name))
        except FileNotFoundError:
            continue
        return name, content
    raise FileNotFoundError(f"{place} holds neither {' nor '.join(ROOTS)}.")


def _attributes(name: str, document: dict[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = document if name == ".zattrs" else document["attributes"]
    return attributes
