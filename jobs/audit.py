"""`ray job submit --working-dir . -- python jobs/audit.py`: the arguments are those of `tessera audit`."""

import sys
from pathlib import Path

# The checkout that this file lies in comes first: a job runs the code that was submitted with it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from tessera.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["audit", *sys.argv[1:]]))
