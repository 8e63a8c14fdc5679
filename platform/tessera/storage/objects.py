"""Small files wherever they lie: read, write, list and remove, in a folder or in an object store.

Each write is whole or absent. In a folder that takes a temporary file and a rename; an object store does it by itself,
and creates an object only where none is (`create`), which is what a claim and an immutable ledger part rest on.

Object stores are reached through obstore, with the standard variables of the environment: AWS_ENDPOINT_URL, AWS_REGION,
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN; GOOGLE_APPLICATION_CREDENTIALS. Credentials stay in the
environment: nothing here keeps, prints or pickles one. S3 is tested against a server of that protocol. Google Cloud
Storage (gs://) goes through the same interface and was not tried.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from tessera.storage.files import write_atomically
from tessera.storage.locations import Place, Url

if TYPE_CHECKING:
    from obstore import UpdateVersion

# What decides how a store is reached. Those of one node alone (instance roles, token files) are not in it.
ACCESS_VARIABLES = (
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ALLOW_HTTP", "AWS_SKIP_SIGNATURE"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY"),
)
# Blocks have tries of their own: one request need not wait for minutes.
_RETRIES = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}
# What makes a folder a volume or a ledger goes last, so that one half removed is still known for what it was.
_REMOVED_LAST = ("zarr.json", ".zattrs", ".zgroup", "job.json")


def access_variables() -> dict[str, str]:
    """The environment's variables that say how object stores are reached; they hold secrets, and are never logged."""
    return {name: os.environ[name] for name in ACCESS_VARIABLES if name in os.environ}


def backing_store(url: Url) -> Any:
    """The obstore store whose objects' names are relative to `url`; nothing is requested yet."""
    return _store(str(url), url.scheme, url.anonymous, tuple(sorted(access_variables().items())))


@lru_cache(maxsize=16)  # a store keeps its connections open
def _store(address: str, scheme: str, anonymous: bool, access: tuple[tuple[str, str], ...]) -> Any:
    variables = dict(access)
    endpoint = variables.get("AWS_ENDPOINT_URL") or variables.get("AWS_ENDPOINT") or ""
    plain = scheme == "http" or (scheme == "s3" and endpoint.startswith("http://"))
    options: dict[str, Any] = {"client_options": {"allow_http": True} if plain else {}, "retry_config": _RETRIES}
    if anonymous and scheme in ("s3", "gs"):
        options["skip_signature"] = True
    with told(address):
        return from_url(address, **options)


@contextmanager
def told(place: object) -> Iterator[None]:
    """Turn a store's errors into OSErrors of one line: its own are a page, and of no type that callers know.

    Raises:
      FileExistsError, FileNotFoundError: an object is there, or is not.
      PermissionError: credentials are wrong, or not allowed to do this.
      OSError: the store cannot be reached or answers with an error.
    """
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(
            f"{place}: the store refuses access ({_line(error)}). Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
            "for a public bucket say `--storage.anonymous true`."
        ) from None
    except AlreadyExistsError:
        raise FileExistsError(f"{place} is already there.") from None
    except PreconditionError:
        raise FileExistsError(f"{place} was replaced by another one.") from None
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{place} is not there ({_line(error)}).") from None
    except BaseError as error:
        hint = "no credentials were found: set AWS_ACCESS_KEY_ID, or say `--storage.anonymous true` for a public bucket"
        cause = hint if "169.254.169.254" in str(error) else _line(error)
        raise OSError(f"{place}: the store cannot be used: {cause}.") from None


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".: ")[:300]


def read_bytes(place: Place) -> bytes:
    """All of a small file.

    Raises:
      FileNotFoundError: it is not there.
    """
    if isinstance(place, Path):
        return place.read_bytes()
    with told(place):
        return bytes(obstore.get(backing_store(place.parent), place.name).bytes())


def write_bytes(place: Place, data: bytes) -> None:
    """Create or replace a small file: a reader sees all of the old or all of the new one.

    Raises:
      OSError: the disk is full, the folder missing, or the store refuses.
    """
    if isinstance(place, Path):
        write_atomically(place, data)
        return
    _put(place, data, "overwrite")


def create_bytes(place: Url, data: bytes) -> str:
    """Create an object where there is none; of two that try at once, one succeeds. Returns its ETag.

    Raises:
      FileExistsError: there is one.
      OSError: the store refuses.
    """
    return _put(place, data, "create")


def replace_bytes(place: Url, data: bytes, tag: str) -> str:
    """Replace the object that has this ETag; returns the new one's.

    Raises:
      FileExistsError: another one is there.
      FileNotFoundError: none is there.
      OSError: the store refuses.
    """
    return _put(place, data, {"e_tag": tag})


def write_new(place: Place, data: bytes) -> None:
    """Write a file whose name was never used before and that never changes; folders above it come by themselves.

    Raises:
      FileExistsError: an object of that name is there.
      OSError: the disk is full, or the store refuses.
    """
    if isinstance(place, Path):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, data)
        return
    create_bytes(place, data)


def _put(place: Url, data: bytes, mode: Literal["create", "overwrite"] | UpdateVersion) -> str:
    if not place.writable:
        raise PermissionError(f"{place}: web servers are read only. Write to a local folder, s3:// or gs://.")
    with told(place):
        # A condition holds for a request: an upload of many of them would pass it by.
        many = None if mode == "overwrite" else False
        return str(obstore.put(backing_store(place.parent), place.name, data, mode=mode, use_multipart=many)["e_tag"])


def is_file(place: Place) -> bool:
    """Whether there is a file or object of exactly this name."""
    return stamp(place) is not None if isinstance(place, Url) else place.is_file()


def exists(place: Place) -> bool:
    """Whether there is a file, a folder, or any object below a prefix."""
    return place.exists() if isinstance(place, Path) else is_file(place) or bool(child_names(place))


def child_names(place: Place) -> list[str]:
    """Sorted names of what lies directly in a folder or prefix; none where there is none, or a server does not list."""
    if isinstance(place, Path):
        return sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    if not place.writable:
        return []
    with told(place):
        listed: Mapping[str, Any] = obstore.list_with_delimiter(backing_store(place))
    paths = [*listed["common_prefixes"], *(meta["path"] for meta in listed["objects"])]
    return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)


def keys_below(place: Url, at_most: int) -> list[str]:
    """Names, relative to a prefix, of up to `at_most` objects below it."""
    with told(place):
        listed = obstore.list(backing_store(place), chunk_size=at_most)
        return [meta["path"] for meta in next(iter(listed), [])][:at_most]


def list_below(place: Url, start: str = "") -> Iterator[str]:
    """Names, relative to a prefix, of every object below it whose name begins with the folder `start`."""
    with told(place):
        for batch in obstore.list(backing_store(place), prefix=start or None):
            yield from (meta["path"] for meta in batch)


def read_edge(place: Place, count: int, *, at_end: bool) -> bytes:
    """The first or last `count` bytes of a file; fewer where it is shorter.

    Raises:
      OSError: it is not there, or cannot be read.
    """
    if isinstance(place, Path):
        with place.open("rb") as file:
            if at_end:
                file.seek(max(os.fstat(file.fileno()).st_size - count, 0))
            return file.read(count)
    part: Any = {"suffix": count} if at_end else (0, count)
    with told(place):
        found = obstore.get(backing_store(place.parent), place.name, options={"range": part})
        return bytes(found.bytes())


def stamp(place: Place) -> list[int | str | None] | None:
    """What changes when a file does: size and modification time (ns), or size and ETag; None where there is none."""
    try:
        if isinstance(place, Path):
            status = place.stat()
            return [status.st_size, status.st_mtime_ns]
        with told(place):
            head = obstore.head(backing_store(place.parent), place.name)
        return [head["size"], head["e_tag"]]
    except FileNotFoundError:
        return None


def modified_at(place: Place) -> float | None:
    """When a file last changed, seconds since 1970 by the clock of whoever keeps it; None where there is none."""
    try:
        if isinstance(place, Path):
            return place.stat().st_mtime
        with told(place):
            changed: datetime = obstore.head(backing_store(place.parent), place.name)["last_modified"]
        return changed.timestamp()
    except FileNotFoundError:
        return None


def remove_file(place: Place) -> None:
    """Remove one file; nothing happens where it is gone already."""
    if isinstance(place, Path):
        place.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError), told(place):
        obstore.delete(backing_store(place.parent), place.name)


def remove_tree(place: Place) -> None:
    """Remove a folder, or every object below a prefix, so that a kill leaves nothing that passes for whole.

    A folder is first renamed to a hidden sibling. Of a prefix, the metadata go last: what is left half removed can be
    removed again.
    """
    if isinstance(place, Path):
        hidden = place.with_name(f".{place.name}.{os.urandom(4).hex()}.deleted")
        place.rename(hidden)
        shutil.rmtree(hidden)
        return
    with told(place):
        store, last = backing_store(place), []
        for batch in obstore.list(store):
            paths = [meta["path"] for meta in batch]
            last += [path for path in paths if path.rsplit("/", 1)[-1] in _REMOVED_LAST]
            obstore.delete(store, [path for path in paths if path not in last])
        for path in sorted(last, key=lambda path: -path.count("/")):
            obstore.delete(store, path)
