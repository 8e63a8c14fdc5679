"""Promises about the order of slices read from their names."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.storage.numbering import number_sections


def test_numbers_sort_by_value_and_not_by_spelling() -> None:
    assert number_sections(["z10.tif", "z2.tif", "z1.tif", "z3.tif"])[:3] == ("z1.tif", "z2.tif", "z3.tif")


@settings(deadline=None)
@given(st.sets(st.integers(0, 36), min_size=20), st.integers(0, 6), st.randoms(use_true_random=False))
def test_every_name_lands_at_its_number_and_gaps_are_none(
    numbers: set[int], width: int, shuffle: random.Random
) -> None:
    names = [f"run7_s{n:0{width}d}.tif" for n in numbers]
    shuffle.shuffle(names)
    ordered = number_sections(names)
    assert len(ordered) == max(numbers) - min(numbers) + 1
    for place, name in enumerate(ordered, min(numbers)):
        assert name == (f"run7_s{place:0{width}d}.tif" if place in numbers else None)


def test_a_single_file_needs_no_number() -> None:
    assert number_sections(["raw.png"]) == ("raw.png",)


def test_a_constant_number_in_the_names_does_not_count_sections() -> None:
    assert number_sections(["exp12_s8.tif", "exp12_s9.tif"]) == ("exp12_s8.tif", "exp12_s9.tif")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["raw_1.tif", "raw_2.tif", "mask_1.tif"], r"several series.*'raw_#.tif' x2.*own folder"),
        (["s1.tif", "s2.png"], "several series"),
        (["raw.tif", "raw.TIF"], "no number in names"),
        (["t0_z0.tif", "t0_z1.tif", "t1_z0.tif"], "2 numbers vary"),
        (["s1.tif", "s01.tif", "s2.tif"], r"number 1 occurs 2 times \(s01.tif, s1.tif\)"),
        (["s7.tif", "s07.tif"], "number 7 occurs 2 times"),
        (["s0.tif", "s50.tif", "s100.tif"], r"steps of 50 \(0, 50, 100.*98 in all"),
        (["s1.tif", "s2.tif", "s20120301.tif"], "numbered 1 to 20120301: 20120298 sections would be missing"),
    ],
)
def test_ambiguous_names_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        number_sections(names)
