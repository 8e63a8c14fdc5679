"""Where the tests find EM volumes."""

from __future__ import annotations

import os
from pathlib import Path


def isbi_dir() -> Path | None:
    """The folder of the ISBI 2012 stacks: TESSERA_ISBI_DIR, else the one beside the repository; None where absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "isbi2012"
    folder = Path(os.environ.get("TESSERA_ISBI_DIR", beside))
    return folder if (folder / "train-volume.tif").is_file() and (folder / "train-labels.tif").is_file() else None
