"""Runs the benchmarks, each in a process of its own: `make bench`, or `make bench ONLY=augmentation`.

A benchmark is a file beside this one with a constant `MINUTES`, what it costs, and a function `main() -> int`, 0 where
its aims were met. Those of at most 5 minutes are run; a longer one is a study, run by its name. They are found by
reading the files: importing them would start what they measure.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from difflib import get_close_matches
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHORT_MINUTES = 5.0


def benchmarks(folder: Path = HERE) -> dict[str, float]:
    """Name -> minutes of the benchmarks in a folder."""
    found = {path.stem: _minutes(ast.parse(path.read_text())) for path in sorted(folder.glob("*.py"))}
    return {name: minutes for name, minutes in found.items() if minutes is not None}


def _minutes(module: ast.Module) -> float | None:
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "MINUTES" for t in node.targets):
            return float(ast.literal_eval(node.value))
    return None


def chosen(only: str | None, found: dict[str, float]) -> list[str]:
    """What to run: the one that was named, or all short ones.

    >>> chosen(None, {"speed": 3.0, "study": 90.0}), chosen("study", {"speed": 3.0, "study": 90.0})
    (['speed'], ['study'])

    Raises:
      ValueError: there is none of that name.
    """
    if not only:
        return [name for name, minutes in found.items() if minutes <= SHORT_MINUTES]
    if only not in found:
        nearest = get_close_matches(only, found, n=1, cutoff=0.0)
        raise ValueError(f"ONLY={only}: there is no such benchmark, so nothing would be measured. Try {nearest[0]}.")
    return [only]


def main(arguments: list[str] | None = None) -> int:
    """Run them one after the other; returns 1 where one failed or missed an aim."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="name of one benchmark")
    try:
        names = chosen(parser.parse_args(arguments).only, benchmarks())
    except ValueError as error:
        parser.error(str(error))
    codes = {}
    for name in names:
        print(f"== {name}", flush=True)
        codes[name] = subprocess.run([sys.executable, str(HERE / f"{name}.py")], check=False).returncode
    short = [name for name, code in codes.items() if code]
    print(f"aims missed, or failed: {', '.join(short)}" if short else "every aim was met")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
