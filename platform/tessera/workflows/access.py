"""Workers reach object stores as the driver does: the variables of its environment go with the work.

They go as an argument of the call that makes a worker, and not in Ray's runtime environment, which Ray logs and shows
in its dashboard: they hold secrets.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

from tessera.engine.tasks import MakeWorker, Process
from tessera.storage.objects import ACCESS_VARIABLES, access_variables


class _Secrets(dict[str, str]):
    """Variables that print as their names alone: a traceback shows arguments."""

    def __repr__(self) -> str:
        return f"<{', '.join(sorted(self))}>"


def with_access(make_worker: MakeWorker) -> MakeWorker:
    """The same worker, made in a process that has this one's access to object stores."""
    variables = access_variables()
    return partial(_make_in, _Secrets(variables), make_worker) if variables else make_worker


def _make_in(variables: Mapping[str, str], make_worker: MakeWorker) -> Process:
    # All or none: half of the driver's keys beside half of the node's would be nobody's.
    for name in ACCESS_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(variables)
    return make_worker()
