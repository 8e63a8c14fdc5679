"""Are the blocks that a ledger records still what was written? Each is read again, and what differs is done again.

    ledger: block, checksum --> worker reads the block, sums it --> differs? --> row "missing" --> it is to be done

A row says that the block is missing before anything is done about it: a kill in between loses nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from tessera.engine.tasks import MakeWorker, OnResult, Outcome, Process, Task
from tessera.geometry.blocks import BlockGrid
from tessera.storage.ledger import Ledger, LedgerRow

_log = logging.getLogger(__name__)

Run = Callable[[MakeWorker, Iterable[Task], OnResult], None]
_LISTED = 20


def recheck(ledger: Ledger, grid: BlockGrid, name: str, make_checker: MakeWorker, run: Run) -> dict[int, str]:
    """Compare every done block that has a checksum with what is stored; those that differ are missing from then on.

    What cannot be decoded differs. So does what still cannot be read after all tries, once the others are checked: a
    store that is gone for a while stops the run instead.

    Args:
      ledger: the output's, open.
      grid: its blocks.
      name: for the log.
      make_checker: gives the function that takes (index, box) and returns {"checksum": of the block as it is stored}.
      run: runs tasks.

    Returns:
      Why, by block.
    """
    expected, unread, found = dict[int, str](), dict[int, str](), dict[int, str]()
    checked = 0

    def tasks() -> Iterator[Task]:
        for block, checksum in ledger.checksums():
            expected[block] = checksum
            yield Task(block, (block, grid.box(block)))

    def on_result(outcome: Outcome) -> None:
        nonlocal checked
        checked += 1
        recorded = expected.pop(outcome.index)
        if outcome.failed:
            unread[outcome.index] = f"it cannot be read: {outcome.error}"
        elif outcome.row["checksum"] != recorded:
            found[outcome.index] = outcome.row.get("error") or (
                f"its checksum is {outcome.row['checksum']}, recorded was {recorded}"
            )
            _record(ledger, outcome.index, found[outcome.index])

    run(partial(_make_tolerant, make_checker), tasks(), on_result)
    for block, reason in unread.items():
        _record(ledger, block, reason)
    ledger.flush()
    found |= unread
    _tell(name, grid, checked, found)
    return found


def _record(ledger: Ledger, block: int, reason: str) -> None:
    ledger.append(LedgerRow(block, "missing", error=f"recheck: {reason}", finished_at=time.time()))


def _make_tolerant(make_checker: MakeWorker) -> Process:
    """A checker for which what is torn or gone is a finding; what cannot be reached is tried again."""
    check = make_checker()

    def process(item: Any) -> dict[str, Any]:
        try:
            return check(item)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                raise
            return {"checksum": "", "error": f"it is not there: {error}"}
        except Exception as error:  # decoders raise whatever they like
            return {"checksum": "", "error": f"it cannot be decoded: {type(error).__name__}: {error}"}

    return process


def _tell(name: str, grid: BlockGrid, checked: int, found: dict[int, str]) -> None:
    if not found:
        _log.info("%s: %d blocks were read again, and are what was recorded", name, checked)
        return
    _log.warning("%s: %d of %d blocks are not what was recorded, and are done again:", name, len(found), checked)
    for block, reason in sorted(found.items())[:_LISTED]:
        _log.warning("  block %d %s: %s", block, grid.box(block), reason)
    if len(found) > _LISTED:
        more = ", ".join(map(str, sorted(found)[_LISTED:]))
        _log.warning("  and blocks %s", more)
