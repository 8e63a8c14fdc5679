"""Which section is which, read from file names alone.

A folder of slices says its order only in its names. A wrong guess puts sections in the wrong place without a word, so
whatever is ambiguous (two series in one folder, two numbers that vary, one number twice) is an error.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from math import gcd
from pathlib import PurePath

# Fewer absent numbers than this are filled in whatever their share: a folder of three test slices may miss two.
_GAPS_ALWAYS_ALLOWED = 16


def number_sections(names: Sequence[str]) -> tuple[str | None, ...]:
    """Order file names by the one number that varies in them, with None where a number is absent.

    Args:
      names: file names of one folder, at least one, in any order.

    Returns:
      One entry per section from the lowest number to the highest.

    Raises:
      ValueError: the names form several series, more than one number varies, a number occurs twice, or the numbers
        are so sparse that they are no section numbers.

    >>> number_sections(["s10.tif", "s8.tif", "s9.tif"])
    ('s8.tif', 's9.tif', 's10.tif')
    >>> number_sections(["s1.tif", "s3.tif", "s4.tif"])
    ('s1.tif', None, 's3.tif', 's4.tif')
    """
    if len(names) == 1:
        return (names[0],)
    _check_one_series(names)
    by_number = _by_number(names, _counting_field(names))
    _check_density(sorted(by_number))
    return tuple(by_number.get(n) for n in range(min(by_number), max(by_number) + 1))


def _pattern(name: str) -> str:
    """The name with every run of digits replaced, so that slices of one series agree."""
    return re.sub(r"\d+", "#", PurePath(name).stem) + PurePath(name).suffix.lower()


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", PurePath(name).stem)]


def _check_one_series(names: Sequence[str]) -> None:
    counts = Counter(map(_pattern, names))
    if len(counts) > 1:
        shown = ", ".join(f"{pattern!r} x{count}" for pattern, count in counts.most_common(5))
        raise ValueError(
            f"the folder holds several series of slices ({shown}; # is a number): one stack is one series, and their "
            "sections would be interleaved. Give each series its own folder."
        )
    if "#" not in next(iter(counts)):
        raise ValueError(
            f"{len(names)} slices but no number in names such as {names[0]!r}: their order along z is unknown. "
            "Number them, for example slice_0000.tif."
        )


def _counting_field(names: Sequence[str]) -> int:
    """Index of the number that varies; the last number where none does."""
    columns = list(zip(*map(_numbers, names), strict=True))
    varying = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    if len(varying) > 1:
        raise ValueError(
            f"{len(varying)} numbers vary in the slices' names ({names[0]!r}, {names[-1]!r}): which of them counts "
            "sections is ambiguous. Keep one number that varies, for example slice_0000.tif."
        )
    return varying[0] if varying else len(columns) - 1


def _by_number(names: Sequence[str], field: int) -> dict[int, str]:
    found: dict[int, list[str]] = defaultdict(list)
    for name in names:
        found[_numbers(name)[field]].append(name)
    twice = {number: sorted(same) for number, same in found.items() if len(same) > 1}
    if twice:
        number, same = min(twice.items())
        raise ValueError(
            f"number {number} occurs {len(same)} times ({', '.join(same)}): only one of them can be that section. "
            "Remove or rename the others."
        )
    return {number: same[0] for number, same in found.items()}


def _check_density(numbers: Sequence[int]) -> None:
    """Refuse numbers that go in steps, or that leave more holes than sections: each hole becomes a zero section."""
    step = gcd(*(b - a for a, b in pairwise(numbers)))
    holes = numbers[-1] - numbers[0] + 1 - len(numbers)
    if step > 1 and len(numbers) > 2:
        raise ValueError(
            f"the slices are numbered in steps of {step} ({numbers[0]}, {numbers[1]}, {numbers[2]}, ...): every gap "
            f"would become a missing section, {holes} in all. Renumber them one by one, for example slice_0000.tif."
        )
    if holes > max(len(numbers), _GAPS_ALWAYS_ALLOWED):
        raise ValueError(
            f"{len(numbers)} slices are numbered {numbers[0]} to {numbers[-1]}: {holes} sections would be missing, "
            "more than there are. Renumber them by their place along z, for example slice_0000.tif."
        )
