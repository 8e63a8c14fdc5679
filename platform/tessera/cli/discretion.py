"""No password of an address in what is logged, whoever logs it: ours or a library."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

from tessera.tracking.provenance import without_passwords


def log_discreetly() -> None:
    """Mask addresses in all log records of this process from now on."""
    logging.setLogRecordFactory(_record)


def _record(*parts: Any, **named: Any) -> logging.LogRecord:
    record = logging.LogRecord(*parts, **named)
    with suppress(TypeError, ValueError):  # a message that does not fit its arguments: logging tells of that itself
        if "://" in (message := record.getMessage()):
            record.msg, record.args = without_passwords(message), None
    return record
