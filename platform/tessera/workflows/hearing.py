"""What a training reports, from the controller that hears it to MLflow and to the progress file.

controller   this module: writes files only, so that no server keeps it waiting
driver       hands the outbox to MLflow, and tells of each line of progress (outbox.py, progress.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.storage.arrays import load_arrays
from tessera.tracking.outbox import Outbox
from tessera.tracking.pictures import contact_sheet
from tessera.workflows.first_batch import show_first_batch
from tessera.workflows.panels import validation_panels
from tessera.workflows.progress import Progress
from tessera.workflows.training_loop import VALIDATION


def hear_report(outbox: Outbox, progress: Progress, report: Mapping[str, Any], checkpoint: Path | None) -> None:
    """Keep one report for MLflow and in the progress file; called in the controller, the only writer.

    What a restart takes again was told before: MLflow keeps one value for each name and step, the first.
    """
    if "step" not in report:
        return
    step = int(report["step"])
    values = {name: float(value) for name, value in report.items() if name != "step" and value is not None}
    if untold := progress.untold(step, values):
        outbox.metrics(untold, step)
        if checkpoint is not None and (checkpoint / VALIDATION).exists():
            outbox.picture("validation", validation_picture(load_arrays(checkpoint / VALIDATION)), step)
    show_first_batch(outbox, progress.path.parent)
    progress.append(step, values)


def validation_picture(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Raw, probability and truth of the same validation sections at every checkpoint, side by side."""
    return contact_sheet(validation_panels(arrays), [str(name) for name in arrays["names"]])
