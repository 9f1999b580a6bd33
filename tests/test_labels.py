"""Subtypes and quality codes: complete, unique, and the published codes."""

from __future__ import annotations

import pytest

from hemolens.labels import FINDING_NAMES, SUBTYPE_NAMES, SUBTYPES, subtype_at
from hemolens.notes import CODES, QualityNote, Severity, is_partial


def test_names_indices_codes_and_colors_are_unique() -> None:
    for field in ("name", "index", "title", "abbreviation", "snomed_code", "color_rgb"):
        values = [getattr(s, field) for s in SUBTYPES]
        assert len(set(values)) == len(values), field


def test_order_is_the_one_of_every_network_and_file() -> None:
    assert SUBTYPE_NAMES == ("epidural", "subdural", "subarachnoid", "intraparenchymal", "intraventricular")
    assert FINDING_NAMES == ("any", *SUBTYPE_NAMES)
    assert [s.index for s in SUBTYPES] == [1, 2, 3, 4, 5]


def test_subtype_at_finds_each_and_refuses_the_rest() -> None:
    assert [subtype_at(s.index) for s in SUBTYPES] == list(SUBTYPES)
    for index in (0, -1, 6):
        with pytest.raises(IndexError, match="no hemorrhage subtype"):
            subtype_at(index)


def verhoeff_is_valid(number: str) -> bool:
    """Check digit of SNOMED CT identifiers (SNOMED CT Release File Specifications, 6.2; Verhoeff 1969)."""

    def combine(a: int, b: int) -> int:  # the dihedral group of the pentagon
        if a < 5:
            return (a + b) % 5 if b < 5 else 5 + (a + b) % 5
        return 5 + (a - b) % 5 if b < 5 else (a - b) % 5

    shift = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]
    check = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit)
        for _ in range(place % 8):
            value = shift[value]
        check = combine(check, value)
    return check == 0


@pytest.mark.parametrize("subtype", SUBTYPES, ids=lambda s: s.name)
def test_snomed_codes_carry_a_valid_check_digit(subtype) -> None:
    assert verhoeff_is_valid(subtype.snomed_code)


def test_the_check_digit_test_can_fail() -> None:
    assert not verhoeff_is_valid("274100003")


def test_notes_accept_known_codes_only() -> None:
    for code in CODES:
        QualityNote(code, Severity.INFO, "told")
    with pytest.raises(ValueError, match="unknown quality code 'tilted'"):
        QualityNote("tilted", Severity.INFO, "told")


def test_one_partial_note_makes_a_result_partial() -> None:
    fine = QualityNote("gantry_tilt", Severity.WARNING, "told")
    assert not is_partial(())
    assert not is_partial((fine,))
    assert is_partial((fine, QualityNote("slices_missing", Severity.PARTIAL, "told")))
