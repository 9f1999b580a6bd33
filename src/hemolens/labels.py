"""The kinds of hemorrhage: one place for their names, indices, codes and colors. Imports nothing heavy.

SNOMED CT codes are those of the hemorrhage itself (morphology plus site), as DICOM SEG and SR carry them in
*Segmented Property Type Code Sequence* (PS3.3 C.8.20.4): 82999001 Epidural intracranial hemorrhage and 35486000
Subdural intracranial hemorrhage as OHDSI's Athena and MR-RATE's map of pathologies name them, 274100004 Cerebral
hemorrhage and 23276006 Ventricular hemorrhage as NLM's value set 2.16.840.1.113883.3.117.1.7.1.212 does. Colors are
those of BHSD's published masks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Subtype:
    """One kind of intracranial hemorrhage."""

    name: str
    """Key in every file that hemolens writes."""
    index: int
    """Value in label maps; 0 is background."""
    title: str
    """For people."""
    abbreviation: str
    snomed_code: str
    color_rgb: tuple[int, int, int]


SUBTYPES: tuple[Subtype, ...] = (
    Subtype("epidural", 1, "Epidural", "EDH", "82999001", (230, 75, 53)),
    Subtype("subdural", 2, "Subdural", "SDH", "35486000", (0, 190, 110)),
    Subtype("subarachnoid", 3, "Subarachnoid", "SAH", "21454007", (60, 200, 230)),
    Subtype("intraparenchymal", 4, "Intraparenchymal", "IPH", "274100004", (70, 120, 255)),
    Subtype("intraventricular", 5, "Intraventricular", "IVH", "23276006", (255, 205, 40)),
)
"""In the order of every network's outputs and every table."""

SUBTYPE_NAMES: tuple[str, ...] = tuple(s.name for s in SUBTYPES)
FINDING_NAMES: tuple[str, ...] = ("any", *SUBTYPE_NAMES)
"""What a slice or a study is scored for."""


EDEMA = Subtype("edema", 7, "Perihematomal edema", "PHE", "2032001", (190, 120, 255))
"""Swelling around a bleed: no hemorrhage, and in no total of blood. Its code is that of cerebral edema."""


def subtype_at(index: int) -> Subtype:
    """Return the subtype whose label-map value is `index` (1 to 5).

    Raises
    ------
    IndexError
        If `index` is no subtype.
    """
    if not 1 <= index <= len(SUBTYPES):
        raise IndexError(f"label {index} is no hemorrhage subtype; they are 1 to {len(SUBTYPES)}")
    return SUBTYPES[index - 1]
