"""Selections of sections, as people write them: `0-19`, `0-3,7`, or nothing for all of them."""

from __future__ import annotations

from collections.abc import Iterable


def parse_sections(text: str | None, depth: int) -> tuple[int, ...]:
    """The section numbers that `text` selects from a volume of `depth` sections, in order.

    Both ends of a range count: `20-23` is four sections.

    >>> parse_sections("0-2,5", 6)
    (0, 1, 2, 5)

    Raises:
      ValueError: not a selection, a section twice, or one outside the volume.
    """
    if text is None:
        return tuple(range(depth))
    chosen: list[int] = []
    for part in str(text).split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise ValueError(
                f"sections={text!r} is not a selection: {part!r} is no number or range. Try '0-19' or '3,5'."
            )
        if last and int(last) < int(first):
            raise ValueError(f"sections={text!r}: {part.strip()!r} runs backwards. Try '{last}-{first}'.")
        chosen.extend(range(int(first), int(last or first) + 1))
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"sections={text!r} selects one section twice. Try '{min(chosen)}-{max(chosen)}'.")
    if max(chosen) >= depth:
        raise ValueError(
            f"sections={text!r} passes the volume, which has {depth} sections, 0-{depth - 1}. Try '0-{depth - 1}'."
        )
    return tuple(chosen)


def name_sections(chosen: Iterable[int]) -> str:
    """The selection of these sections, as people write it.

    >>> name_sections([0, 1, 2, 5])
    '0-2,5'
    """
    runs: list[list[int]] = []
    for z in sorted(chosen):
        if runs and runs[-1][-1] == z - 1:
            runs[-1][-1:] = [z] if len(runs[-1]) == 2 else [z - 1, z]
        else:
            runs.append([z])
    return ",".join("-".join(str(z) for z in run) for run in runs)
