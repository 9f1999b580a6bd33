"""Which series of a study is the axial head scan, and why: ordered criteria, so that every choice has a reason."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hemolens.errors import DecodeError, GeometryError, InputError, SelectionError
from hemolens.sources.dicom.header import SECONDARY_CAPTURE, SliceHeader
from hemolens.sources.dicom.kernels import Sharpness, kernel_sharpness
from hemolens.sources.dicom.scan import Scan
from hemolens.sources.dicom.stacks import offset_of, position_groups, split_stacks
from hemolens.sources.files import listing

AXIAL_COSINE = 0.7
"""Normals within 45 degrees of the body's axis are axial; gantries lean 30 degrees at most."""
ENOUGH_SLICES = 5
ENOUGH_COVERAGE_MM = 80.0
"""Along the normal; a head has 150 mm."""
HEAD_FIELD_MM = (120.0, 340.0)
"""Width of an image; the demo of a small child starts at 120, a chest at 350."""
USUAL_STEP_MM = (2.0, 7.5)
"""Distance of the slices that radiologists read and that the model was trained on."""

HEAD_WORDS = re.compile(r"head|brain|skull|cran|kopf|sch[aä]del|neuro|hirn|t[eê]te|cerebr", re.IGNORECASE)
OTHER_PART_WORDS = re.compile(
    r"(?<![a-z])(chest|thorax|lungs?|abdomen|abd|pelvis|spine|[clt]-?spine|neck|heart|cardiac|liver|knee|hip|shoulder"
    r"|foot|hand|leg|arm|extremity|aorta)(?![a-z])",
    re.IGNORECASE,
)
PROJECTION_TYPES = frozenset(
    {
        "MIP",
        "MINIP",
        "MAX_IP",
        "MIN_IP",
        "PROJECTION IMAGE",
        "VRT",
        "SSD",
        "VOLUME_RENDERING",
        "SUBTRACTION",
        "PERFUSION",
    }
)
PROJECTION_WORDS = re.compile(
    r"(?<![a-z])(mip|minip|vrt|cbf|cbv|mtt|tmax|ttp|perfusion|ctp|subtr\w*)(?![a-z])", re.IGNORECASE
)
NO_CONTRAST_WORDS = re.compile(
    r"non[- ]?con|no con|w/?o con|without|nativ|plain|unenhanced|(?<![a-z])nc(?![a-z])", re.IGNORECASE
)
CONTRAST_WORDS = re.compile(
    r"(?<![a-z])(cta|ctv|angio\w*|contrast|post|iv|venogra\w*)(?![a-z])|\+ ?c(?![a-z])", re.IGNORECASE
)
SCOUT_WORDS = re.compile(r"scout|localizer|localiser|topogram|surview|scanogram", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one series of one patient that could make a volume."""

    uid: str
    patient_key: str
    slices: tuple[SliceHeader, ...]
    """With pose, of the largest stack."""
    left_out: tuple[SliceHeader, ...]
    """With pose, of other stacks."""
    unposed: tuple[SliceHeader, ...]
    """Without pose."""

    @property
    def first(self) -> SliceHeader:
        """A slice to ask about what all slices share."""
        return self.slices[0]

    @cached_property
    def positions(self) -> int:
        """How many different positions the slices have."""
        return len(position_groups(self.slices))

    @cached_property
    def coverage_mm(self) -> float:
        """Length along the normal from the first to the last slice."""
        normal = self._normal
        return offset_of(max(self.slices, key=lambda h: offset_of(h, normal)), normal) - offset_of(
            min(self.slices, key=lambda h: offset_of(h, normal)), normal
        )

    @property
    def _normal(self) -> Any:
        pose = self.first.pose
        return np.array([0.0, 0.0, 1.0]) if pose is None else pose.normal

    @property
    def is_axial(self) -> bool:
        """Whether slices lie across the body's axis."""
        return abs(float(self._normal[2])) >= AXIAL_COSINE

    @property
    def is_projection(self) -> bool:
        """Whether it is a projection, a map or a difference instead of slices in Hounsfield units."""
        kinds = set(self.first.image_type)
        return bool(kinds & PROJECTION_TYPES or PROJECTION_WORDS.search(self.first.description))

    @property
    def shows_elsewhere(self) -> bool:
        """Whether the header names another part of the body and not the head."""
        text = f"{self.first.body_part} {self.first.description}"
        return bool(OTHER_PART_WORDS.search(text)) and not HEAD_WORDS.search(text)

    @property
    def has_head_field(self) -> bool:
        """Whether the image is as wide as a head scan is."""
        pose, pixels = self.first.pose, self.first.pixels
        if pose is None or pixels is None:
            return False
        return HEAD_FIELD_MM[0] <= pixels.columns * pose.spacing_mm[1] <= HEAD_FIELD_MM[1]

    @property
    def sharpness(self) -> Sharpness:
        """How well the kernel suits the brain."""
        return kernel_sharpness(self.first.kernel, self.first.description)

    @property
    def is_enhanced(self) -> bool:
        """Whether contrast medium was given, by the header or the description."""
        text = self.first.description
        return not NO_CONTRAST_WORDS.search(text) and bool(self.first.contrast or CONTRAST_WORDS.search(text))

    @property
    def step_mm(self) -> float:
        """Mean distance of the slices."""
        return self.coverage_mm / max(self.positions - 1, 1)

    def title(self) -> str:
        """Name the series for people."""
        text = self.first.description[:64]
        return f'"{text}"' if text else (f"series {self.first.series_number}" if self.first.series_number else self.uid)


@dataclass(frozen=True)
class Choice:
    """The chosen series and what to say about it."""

    series: Series
    reason: str
    """Empty if there was nothing to choose from."""
    skipped: Counter[str]
    """How many slices and files were left out, by kind."""
    studies: int
    """How many studies of this patient had usable series."""


Criterion = tuple[str, Callable[[Series], Any]]


def _criteria(candidates: Sequence[Series]) -> tuple[Criterion, ...]:
    """Return what counts, most important first: why the loser lost, and a key of which more is better."""
    most = max((s.coverage_mm for s in candidates if s.is_axial), default=0.0)
    enough = min(ENOUGH_COVERAGE_MM, 0.6 * most)
    return (
        (f"fewer than {ENOUGH_SLICES} slices", lambda s: s.positions >= ENOUGH_SLICES),
        ("not axial", lambda s: s.is_axial),
        ("a projection or map", lambda s: not s.is_projection),
        ("another part of the body", lambda s: not s.shows_elsewhere),
        ("a field of view that is no head's", lambda s: s.has_head_field),
        ("covers only part of the head", lambda s: s.coverage_mm >= enough),
        ("a sharper kernel", lambda s: s.sharpness),
        ("contrast medium", lambda s: not s.is_enhanced),
        ("an earlier study", lambda s: s.first.acquired),
        ("slices of unusual distance", lambda s: USUAL_STEP_MM[0] <= s.step_mm <= USUAL_STEP_MM[1]),
        ("derived, not original", lambda s: "DERIVED" not in s.first.image_type),
        ("covers less", lambda s: round(s.coverage_mm / 10)),
        ("fewer slices", lambda s: s.positions),
        ("a later series", lambda s: -(s.first.series_number if s.first.series_number is not None else 10**6)),
        ("a later series", lambda s: [-ord(c) for c in s.uid]),
    )


def choose(scan: Scan, source: str, series_uid: str | None) -> Choice:
    """Pick the axial head series.

    Parameters
    ----------
    scan
        Every header that was found.
    source
        The folder or file, for messages.
    series_uid
        Take this one, whatever it is; None to choose.

    Raises
    ------
    SelectionError
        If `series_uid` is not there, two patients are mixed, or there are only localizers.
    InputError
        If nothing can be used; the kind (modality, geometry, damage) is named.
    """
    usable, refused = _sorted_out(scan.slices)
    series = _series_of(usable)
    if series_uid is not None:
        chosen = [s for s in series if s.uid == series_uid and s.slices]
        if not chosen:
            raise _unknown_or_unusable(scan, source, series_uid)
    else:
        chosen = [s for s in series if s.slices]
        if not chosen:
            raise _nothing_usable(scan, source)
    _refuse_mixed_patients(chosen, source)
    criteria = _criteria(chosen)
    ranked = sorted(chosen, key=lambda s: [key(s) for _, key in criteria], reverse=True)
    best = ranked[0]
    skipped = Counter(refused) + scan.others
    skipped["other CT series"] += sum(len(s.slices) + len(s.left_out) + len(s.unposed) for s in series if s is not best)
    return Choice(best, _reason(ranked, series, refused, criteria, series_uid), +skipped, _studies(chosen))


def _studies(series: Iterable[Series]) -> int:
    return len({s.first.study_uid for s in series})


def _sorted_out(slices: Iterable[SliceHeader]) -> tuple[list[SliceHeader], Counter[str]]:
    usable: list[SliceHeader] = []
    refused: Counter[str] = Counter()
    for header in slices:
        kind = _refusal(header)
        if kind:
            refused[kind] += 1
        else:
            usable.append(header)
    return usable, refused


def _refusal(header: SliceHeader) -> str:
    """Name the kind of an image that can never be a slice of a CT volume; empty if it can."""
    if header.sop_class.startswith(SECONDARY_CAPTURE):
        return "secondary capture"
    if not header.is_ct:
        return f"{_modality(header)} image"
    if header.is_localizer or SCOUT_WORDS.search(header.description):
        return "localizer"
    if header.pixels is None or header.pixels.samples != 1 or not header.pixels.photometric.startswith("MONOCHROME"):
        return "color image"
    return ""


def _modality(header: SliceHeader) -> str:
    return "".join(c for c in header.modality if c.isalnum())[:16] or "other"


def _series_of(slices: Iterable[SliceHeader]) -> list[Series]:
    grouped: dict[tuple[str, str], list[SliceHeader]] = defaultdict(list)
    for header in slices:
        grouped[(header.patient_key, header.series_uid)].append(header)
    series = []
    for (patient, uid), members in grouped.items():
        posed = [h for h in members if h.pose is not None]
        stacks = split_stacks(posed) or [[]]
        rest = tuple(h for stack in stacks[1:] for h in stack)
        series.append(Series(uid, patient, tuple(stacks[0]), rest, tuple(h for h in members if h.pose is None)))
    return series


def _refuse_mixed_patients(series: Sequence[Series], source: str) -> None:
    patients = len({s.patient_key for s in series})
    if patients > 1:
        raise SelectionError(
            source,
            f"holds CT series of {patients} patients",
            f"Choose one with --series UID; found: {_uids(series)}.",
        )


def _uids(series: Iterable[Series]) -> str:
    return listing([f"{s.uid} ({s.positions if s.slices else 0} slices)" for s in series], most=20)


def _unknown_or_unusable(scan: Scan, source: str, uid: str) -> InputError:
    named = [h for h in scan.slices if h.series_uid == uid]
    if not named:
        found = sorted({h.series_uid for h in scan.slices if h.series_uid})
        return SelectionError(source, f"holds no series {uid}", f"Found: {listing(found, most=20) or 'none'}.")
    return _nothing_usable(Scan(tuple(named), ()), source)


def _nothing_usable(scan: Scan, source: str) -> InputError:
    """Say why there is nothing to read: the most telling reason first."""
    kinds = Counter(_refusal(h) for h in scan.slices)
    unposed = next((h for h in scan.slices if not _refusal(h)), None)
    if unposed is not None:
        remedy = "Export the study with its geometry; hemolens does not guess where slices lie."
        return GeometryError(source, f"{unposed.pose_problem} in {unposed.entry.name}", remedy)
    if kinds["localizer"]:
        return SelectionError(source, "holds only localizers (scout images)", "Give the axial head series.")
    modalities = sorted({_modality(h) for h in scan.slices if not h.is_ct and _modality(h) not in ("CT", "other")})
    if modalities:
        found = listing(modalities)
        return InputError(source, f"holds {found} images, not CT", "Give a head CT; hemolens reads nothing else.")
    if scan.slices:
        return InputError(source, f"holds no CT slices, only {listing(sorted(kinds))}", "Give the axial head series.")
    if scan.damaged:
        return DecodeError(
            source, f"no DICOM file can be read; damaged: {listing(scan.damaged)}", "Copy or export the study again."
        )
    return InputError(source, "holds no DICOM images", "Give the folder of a head CT.")


def _reason(
    ranked: Sequence[Series],
    series: Sequence[Series],
    refused: Counter[str],
    criteria: Sequence[Criterion],
    series_uid: str | None,
) -> str:
    best = ranked[0]
    lost = Counter(_why_lost(best, other, criteria) for other in ranked[1:])
    lost.update("no usable geometry" for s in series if not s.slices)
    if series_uid is not None:
        return f"{best.title()} ({best.positions} slices) was asked for by its UID"
    if not lost and not refused:
        return ""
    others = [f"{title}: {why}" for title, why in ((o.title(), _why_lost(best, o, criteria)) for o in ranked[1:])]
    others += [f"{count} x {kind}" for kind, count in sorted(refused.items())]
    others += ["no usable geometry"] * any(not s.slices for s in series)
    return f"{best.title()} ({best.positions} slices, {_praise(best)}); not taken: {listing(others, most=8)}"


def _praise(series: Series) -> str:
    kernel = {Sharpness.SOFT: "soft kernel", Sharpness.SHARP: "sharp kernel"}.get(series.sharpness, "kernel unknown")
    return f"{'axial' if series.is_axial else 'not axial'}, {kernel}, {series.coverage_mm:.0f} mm"


def _why_lost(best: Series, other: Series, criteria: Sequence[Criterion]) -> str:
    return next((why for why, key in criteria if key(best) != key(other)), "the same again")
