"""One driver per output: whoever writes a ledger holds its lease, shows signs of life, and stops once another has it.

    OUTPUT.zarr.ledger/lease-00000003.json    who holds it; its time of change is the last sign of life

A lease is created where there is none of that number, by one of those who try. Its successor's number is one higher:
taken after `expiry_s` without a sign of life, or at once where the holder was a process of this machine and is gone. A
driver that was only thought dead finds a higher number, or not its own file, and writes no more.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tessera.storage.locations import Place
from tessera.storage.objects import child_names, create_bytes, modified_at, read_bytes, remove_file, write_bytes

EXPIRY_S = 60.0
_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"lease-(\d{8})\.json")
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
      pid: process there.
      started_at: when that process began, seconds since 1970: a later process may have the same number.
      token: tells two leases of one number apart.
    """

    host: str
    pid: int
    started_at: float
    token: str

    @property
    def is_gone(self) -> bool:
        """Whether it was a process of this machine that is no more; elsewhere nobody can tell."""
        if self.host != socket.gethostname():
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

    def is_held(self, expiry_s: float = EXPIRY_S) -> bool:
        """Whether somebody must be assumed to work on the output."""
        return self.age_s < expiry_s and not (self.holder is not None and self.holder.is_gone)

    def __str__(self) -> str:
        who = f"process {self.holder.pid} on {self.holder.host}" if self.holder else "a process that cannot be named"
        return f"{who}, last sign of life {max(0.0, self.age_s):.0f} s ago"


def is_lease(name: str) -> bool:
    """Whether a file of this name is a lease."""
    return bool(_NAME.fullmatch(name))


def sight(folder: Place) -> Sighting | None:
    """The highest lease in a ledger's folder; None where there is none."""
    number = _highest(folder)
    if number is None:
        return None
    changed = modified_at(_file(folder, number))
    if changed is None:  # given back in between
        return None
    return Sighting(number, _holder(_file(folder, number)), time.time() - changed)


class Lease:
    """The right to write a ledger, kept alive by a thread until `release`; get one with `Lease.take`."""

    def __init__(self, folder: Place, number: int, holder: Holder, expiry_s: float) -> None:
        self._file, self._folder, self._number, self._holder = _file(folder, number), folder, number, holder
        self._over = threading.Event()
        threading.Thread(target=self._beat, args=(expiry_s / _BEATS,), daemon=True, name="tessera-lease").start()

    @classmethod
    def take(cls, folder: Place, expiry_s: float = EXPIRY_S) -> Lease:
        """Become the one driver of a ledger.

        Args:
          folder: the ledger's.
          expiry_s: seconds without a sign of life after which a holder counts as dead.

        Raises:
          OutputInUseError: another driver holds it, with who and since when it was last heard of.
        """
        seen = sight(folder)
        if seen is not None and seen.is_held(expiry_s):
            raise OutputInUseError(_in_use(folder, seen, expiry_s))
        number, holder = 1 if seen is None else seen.number + 1, _myself()
        try:
            _create(_file(folder, number), json.dumps(asdict(holder)).encode())
        except FileExistsError:
            found = sight(folder)
            raise OutputInUseError(_in_use(folder, found, expiry_s)) from None
        if seen is not None:
            _LOG.warning("%s: taken over from %s", folder, seen)
            remove_file(_file(folder, seen.number))
        return cls(folder, number, holder, expiry_s)

    def check(self) -> None:
        """Make sure that the lease is still ours.

        Raises:
          LeaseLostError: it is not.
        """
        if _highest(self._folder) != self._number or _holder(self._file) != self._holder:
            seen = sight(self._folder)
            raise LeaseLostError(
                f"{self._folder} is no longer this driver's: "
                + (f"{seen} took it over, as this one gave no sign of life. " if seen else "it was removed meanwhile. ")
                + "What it has not recorded yet is left to that one; look with `tessera status`."
            )

    def release(self) -> None:
        """Give it back, so that the next driver need not wait; harmless if it was lost."""
        self._over.set()
        if _holder(self._file) == self._holder:
            remove_file(self._file)

    def _beat(self, seconds: float) -> None:
        while not self._over.wait(seconds):
            try:
                if _holder(self._file) != self._holder:
                    return
                _touch(self._file, self._holder)
            except OSError as error:
                _LOG.warning("%s: no sign of life could be left: %s", self._file, error)


def _in_use(folder: Place, seen: Sighting | None, expiry_s: float) -> str:
    return (
        f"{folder} is in use: another driver works on this output ({seen or 'it came first by a moment'}). Two at once "
        f"would write over each other. Wait for it, or end it; {expiry_s:.0f} s after its last sign of life the same "
        "command takes over."
    )


def _myself() -> Holder:
    return Holder(socket.gethostname(), os.getpid(), psutil.Process().create_time(), os.urandom(8).hex())


def _file(folder: Place, number: int) -> Place:
    return folder / f"lease-{number:08d}.json"


def _highest(folder: Place) -> int | None:
    return max((int(found[1]) for found in map(_NAME.fullmatch, child_names(folder)) if found), default=None)


def _holder(file: Place) -> Holder | None:
    try:
        return Holder(**json.loads(read_bytes(file)))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _create(file: Place, data: bytes) -> None:
    if not isinstance(file, Path):
        create_bytes(file, data)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("xb") as stream:
        stream.write(data)


def _touch(file: Place, holder: Holder) -> None:
    if isinstance(file, Path):
        file.touch(exist_ok=True)
    else:
        write_bytes(file, json.dumps(asdict(holder)).encode())
