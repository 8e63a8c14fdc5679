"""Where the ledger of an output lies, and which job it belongs to: `job.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tessera.storage.attributes import volume_id
from tessera.storage.ledger_parts import list_parts
from tessera.storage.locations import Place, place_of
from tessera.storage.objects import is_file, read_bytes, write_new

JOB = "job.json"


def ledger_path(output: Place | str) -> Place:
    """The ledger's folder, beside the output.

    >>> ledger_path("/data/membrane.zarr").name
    'membrane.zarr.ledger'
    """
    folder = place_of(output)
    return folder.with_name(folder.name + ".ledger")


def stage_folder(output: Place | str, stage: str | None) -> Place:
    """The folder of one pass over an output; None is the pass without a name.

    Raises:
      ValueError: the name could be another folder's.
    """
    if stage is None:
        return ledger_path(output)
    if not re.fullmatch(r"[a-z][a-z0-9_]*", stage):
        raise ValueError(f"stage {stage!r}: use lower-case letters, digits and _, for example 'faces'.")
    return ledger_path(output) / stage


def has_job(output: Place | str, *, stage: str | None = None) -> bool:
    """Whether a job was begun on an output."""
    return is_file(stage_folder(output, stage) / JOB)


def read_job(output: Place | str, *, stage: str | None = None) -> dict[str, Any]:
    """The contents of `job.json`: key, description, output_id.

    Raises:
      FileNotFoundError: there is no ledger.
      ValueError: it is corrupt.
    """
    return _read_job(stage_folder(output, stage))


def begin_or_resume(output: Place | str, stage: str | None, key: str, description: Mapping[str, Any]) -> Place:
    """The folder of a job's rows: begun where there is none, else made sure of that it is this job's.

    Raises:
      ValueError: the ledger is another job's, belongs to an output that is gone, or cannot be read.
    """
    folder = stage_folder(output, stage)
    job = _job(output, key, description)
    if is_file(folder / JOB):
        _check_same_job(folder, _read_job(folder), job)
    else:
        _begin(folder, job)
    return folder


def check_job(output: Place | str, stage: str | None, key: str, description: Mapping[str, Any]) -> None:
    """Make sure that a ledger which is there is this job's; nothing is touched.

    Raises:
      ValueError: it is another job's, belongs to an output that is gone, or cannot be read.
    """
    folder = stage_folder(output, stage)
    _check_same_job(folder, _read_job(folder), _job(output, key, description))


def _job(output: Place | str, key: str, description: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": 1, "key": key, "description": _plain(description), "output_id": volume_id(place_of(output))}


def _plain(description: Mapping[str, Any]) -> dict[str, Any]:
    """The description as it will be read back, so that tuples and lists compare equal."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(description), sort_keys=True))
    except TypeError as error:
        raise ValueError(
            f"the job's description is not JSON ({error}): it could not be compared when the job resumes. Use plain "
            "numbers, strings, lists and dictionaries."
        ) from error
    return plain


def _begin(folder: Place, job: Mapping[str, Any]) -> None:
    if list_parts(folder):
        raise ValueError(
            f"{folder} holds ledger parts but no job.json: whose blocks they are is unknown. Restore job.json, or "
            "delete the folder to run every block again."
        )
    write_new(folder / JOB, json.dumps(job, indent=2).encode())


def _read_job(folder: Place) -> dict[str, Any]:
    text = read_bytes(folder / JOB)
    try:
        job: dict[str, Any] = json.loads(text)
        _ = job["key"], job["description"].keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / JOB} is corrupt ({error!r}): whether these blocks may be reused is unknown. Restore it, or say "
            "`--overwrite true` to run every block again."
        ) from error
    return job


def _check_same_job(folder: Place, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if old["key"] != new["key"]:
        lines = _differences(old["description"], new["description"]) or ["nothing described, such as the version"]
        raise ValueError(
            f"{folder} belongs to another job: {'; '.join(lines)}. Reusing its blocks would mix two jobs' results. "
            "Give another output, or say `--overwrite true` to delete this one."
        )
    if old.get("output_id") not in (None, new["output_id"]):
        raise ValueError(
            f"{folder} records blocks of an output that was deleted or made anew since: they would be skipped and read "
            "as zeros. Say `--overwrite true` to begin again."
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of fields that differ, with both values."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name, "absent"), new.get(name, "absent")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name} was {a}, now {b}")
    return found
