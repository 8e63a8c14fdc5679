"""One driver per output: whoever writes a ledger holds its lease, shows signs of life, and stops once another has it.

    OUTPUT.zarr.ledger/lease-00000003.json    who holds it; its time of change is the last sign of life

A lease is created where there is none of that number, by one of those who try. Its successor's number is one higher:
taken once the holder gave no sign of life for as long as it said it would at most, or at once where the holder was a
process of this machine and is gone. A driver that was only thought dead finds a higher number, or not its own file:
it writes no more, and its job stops.

Signs of life never bring a lease back that a successor removed: on a disk the file's time is set, and in an object
store the object is replaced only where it is still the one that this driver wrote last (its ETag).
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil

from tessera.storage.locations import Place, Url
from tessera.storage.objects import (
    child_names,
    create_bytes,
    modified_at,
    read_bytes,
    remove_file,
    replace_bytes,
    stamp,
    write_bytes,
)

EXPIRY_S = 60.0
_LOG = logging.getLogger(__name__)
_PREFIX, _NAME = "lease-", re.compile(r"lease-(\d{8})\.json")
_BEATS = 4


class OutputInUseError(OSError):
    """Another driver works on the output."""


class LeaseLostError(RuntimeError):
    """Another driver took the output over, or it was removed."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lease.

    Attributes:
      host: the machine's name.
      world: the machine's start and the process numbers that the holder sees: two containers may share a name.
      pid: process there.
      started_at: when that process began, seconds since 1970: a later process may have the same number.
      token: tells two leases of one number apart.
      expiry_s: seconds without a sign of life after which it wants to be thought dead.
    """

    host: str
    world: str
    pid: int
    started_at: float
    token: str
    expiry_s: float

    @property
    def is_gone(self) -> bool:
        """Whether it was a process of this machine that is no more; elsewhere nobody can tell."""
        if (self.host, self.world) != (socket.gethostname(), _world()):
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started_at) > 1.0)
        except psutil.Error:
            return True


@dataclass(frozen=True)
class Sighting:
    """What an onlooker sees of a lease.

    Attributes:
      number: of the lease.
      holder: None where its file cannot be read, because it is being written or was torn.
      age_s: seconds since the last sign of life.
    """

    number: int
    holder: Holder | None
    age_s: float

    @property
    def expiry_s(self) -> float:
        """How old it may become: what its holder said, for that decides how often it shows signs of life."""
        return self.holder.expiry_s if self.holder else EXPIRY_S

    @property
    def is_held(self) -> bool:
        """Whether somebody must be assumed to work on the output."""
        return self.age_s < self.expiry_s and not (self.holder is not None and self.holder.is_gone)

    def __str__(self) -> str:
        who = f"process {self.holder.pid} on {self.holder.host}" if self.holder else "a process that cannot be named"
        return f"{who}, last sign of life {max(0.0, self.age_s):.0f} s ago"


def is_lease(name: str) -> bool:
    """Whether a file of this name is a lease, or was made in taking one."""
    return name.startswith(_PREFIX)


def sight(folder: Place) -> Sighting | None:
    """The highest lease in a ledger's folder, its age by this machine's clock; None where there is none."""
    return _sight(folder, time.time)


def _sight(folder: Place, now: Callable[[], float]) -> Sighting | None:
    number = _highest(folder)
    if number is None:
        return None
    changed = modified_at(_file(folder, number))
    if changed is None:  # given back in between
        return None
    return Sighting(number, _holder(_file(folder, number)), now() - changed)


class Lease:
    """The right to write a ledger, kept alive by a thread until `release`; get one with `Lease.take`."""

    def __init__(self, folder: Place, number: int, holder: Holder, tag: str | None) -> None:
        self._file, self._folder, self._number, self._holder = _file(folder, number), folder, number, holder
        self._tag, self._lost = tag, False
        self._over = threading.Event()
        threading.Thread(target=self._beat, daemon=True, name="tessera-lease").start()

    @classmethod
    def take(cls, folder: Place, expiry_s: float = EXPIRY_S) -> Lease:
        """Become the one driver of a ledger.

        Args:
          folder: the ledger's; made where it is missing.
          expiry_s: seconds without a sign of life after which this driver may be thought dead.

        Raises:
          OutputInUseError: another driver holds it, with who and since when it was last heard of.
          OSError: the folder cannot be written to.
        """
        # By the clock that dates the signs of life: this machine's may go minutes before or after it.
        seen = _sight(folder, lambda: _time_there(folder))
        if seen is not None and seen.is_held:
            raise OutputInUseError(_in_use(folder, seen))
        number, holder = 1 if seen is None else seen.number + 1, _myself(expiry_s)
        try:
            tag = _create(_file(folder, number), _encoded(holder))
        except FileExistsError:
            raise OutputInUseError(_in_use(folder, sight(folder))) from None
        if seen is not None:
            _LOG.warning("%s: taken over from %s", folder, seen)
            remove_file(_file(folder, seen.number))
        return cls(folder, number, holder, tag)

    def check(self) -> None:
        """Look whether the lease is still ours.

        Raises:
          LeaseLostError: it is not, now or at an earlier look.
        """
        self._lost |= _highest(self._folder) != self._number or _holder(self._file) != self._holder
        self.raise_if_lost()

    def raise_if_lost(self) -> None:
        """What the last look found, without another: cheap enough to be asked all the time.

        Raises:
          LeaseLostError: the lease was not ours any more.
        """
        if self._lost:
            seen = sight(self._folder)
            raise LeaseLostError(
                f"{self._folder} is no longer this driver's: "
                + (f"{seen} took it over, as this one gave no sign of life. " if seen else "it was removed meanwhile. ")
                + "This job stops; what it has not recorded yet is left to that one. Look with `tessera status`."
            )

    def release(self) -> None:
        """Give it back, so that the next driver need not wait; harmless if it was lost."""
        self._over.set()
        if _holder(self._file) == self._holder:
            remove_file(self._file)
        if isinstance(self._folder, Path):
            with suppress(OSError):  # where a ledger was begun, it is not empty
                self._folder.rmdir()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._over.wait(self._holder.expiry_s / _BEATS):
            try:
                self.check()
                self._show_life()
            except LeaseLostError as error:
                if not self._over.is_set():
                    _LOG.error("%s", error)
                return
            except OSError as error:
                _LOG.warning("%s: no sign of life could be left: %s", self._file, error)

    def _show_life(self) -> None:
        try:
            if isinstance(self._file, Path):
                os.utime(self._file)
            else:
                self._tag = replace_bytes(self._file, _encoded(self._holder), str(self._tag))
        except FileNotFoundError:
            self.check()
        except FileExistsError:  # another's, or our own of which the answer was lost on its way
            self.check()
            self._tag = str((stamp(self._file) or [0, None])[1])


def _in_use(folder: Place, seen: Sighting | None) -> str:
    expiry = seen.expiry_s if seen else EXPIRY_S
    return (
        f"{folder} is in use: another driver works on this output ({seen or 'it came first by a moment'}). Two at once "
        f"would write over each other. Wait for it, or end it; {expiry:.0f} s after its last sign of life the same "
        "command takes over."
    )


def _myself(expiry_s: float) -> Holder:
    created = psutil.Process().create_time()
    return Holder(socket.gethostname(), _world(), os.getpid(), created, os.urandom(8).hex(), expiry_s)


def _world() -> str:
    """Which processes are numbered together: this machine since its start, or one container on it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux: the name of the machine must do
        return ""


def _time_there(folder: Place) -> float:
    """Seconds since 1970 by the clock of whoever keeps the folder."""
    probe = folder / f"{_PREFIX}clock-{os.urandom(4).hex()}"
    try:
        write_bytes(probe, b"")
        return modified_at(probe) or time.time()
    finally:
        remove_file(probe)


def _file(folder: Place, number: int) -> Place:
    return folder / f"{_PREFIX}{number:08d}.json"


def _highest(folder: Place) -> int | None:
    return max((int(found[1]) for found in map(_NAME.fullmatch, child_names(folder)) if found), default=None)


def _encoded(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _holder(file: Place) -> Holder | None:
    try:
        return Holder(**json.loads(read_bytes(file)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _create(file: Place, data: bytes) -> str | None:
    """Create a lease where there is none of its name; in an object store, its ETag."""
    if isinstance(file, Url):
        return create_bytes(file, data)
    for _ in range(_BEATS):
        file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # who gave a lease back removed the empty folder in between
            with file.open("xb") as stream:
                stream.write(data)
            return None
    raise FileNotFoundError(f"{file.parent} is removed again and again: another process works there.")
