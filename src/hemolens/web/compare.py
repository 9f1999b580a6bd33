"""A result beside the truth, or beside another network's: how much they share, what was missed, what was made up."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from hemolens.errors import HemolensError, InputError
from hemolens.evaluation.metrics import dice_score, match_lesions
from hemolens.explain.truth import read_truth
from hemolens.inference.registry import list_models
from hemolens.labels import SUBTYPES
from hemolens.measurements.findings import format_amount
from hemolens.measurements.lesions import find_lesions, number_lesions, smallest_size
from hemolens.measurements.regions import Scale
from hemolens.volume import LabelMap, Volume
from hemolens.web import session
from hemolens.web.findings import table
from hemolens.web.session import Study, settings
from hemolens.web.viewer import Overlay, label_overlay
from hemolens.web.viewer import show as show_viewer
from hemolens.web.viewing import split

Labels = NDArray[np.uint8]

FALSE_COLOR = (255, 60, 160)
MISSED_COLOR = (255, 150, 0)
OTHER_COLOR = (255, 255, 255)
TRUTH, MODEL = "A mask that is true", "Another network"
MADE_UP, MISSED = "Found where there is none", "Missed"
MOST_JUMPS = 6


@dataclass(frozen=True)
class Comparison:
    """How two label maps of one scan agree. What is undefined is NaN."""

    dice: float
    """Of all blood."""
    dice_by_subtype: Mapping[str, float]
    """NaN throughout where the other side knows no subtypes."""
    found: float
    true: float
    """Sizes, in `unit`."""
    unit: str
    detected: int
    true_lesions: int
    false_lesions: int
    """Found lesions that touch no true blood."""
    found_lesions: int


def compare(found: LabelMap, other: Labels, known: NDArray[np.bool_] | None = None) -> Comparison:
    """Compare what was found with another label map on the same grid.

    Parameters
    ----------
    found
        What is judged.
    other
        What it is judged by: 0 is none, 1 to 5 subtypes, anything higher blood of unknown subtype.
    known
        Slices on which `other` is known; others are left out. None for all.

    Raises
    ------
    InputError
        If the shapes differ.
    """
    volume = found.volume
    seen = np.ones(len(volume), dtype=bool) if known is None else known
    ours = np.where(seen[:, None, None], found.labels, 0).astype(np.uint8)
    theirs = np.where(seen[:, None, None], LabelMap(other, volume).labels, 0).astype(np.uint8)
    scale, kinds = Scale.of(volume), np.count_nonzero(np.bincount(other.ravel(), minlength=1)[1:])

    def size(mask: NDArray[np.bool_]) -> float:
        return float(np.count_nonzero(mask, axis=(1, 2)) @ scale.weights)

    def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
        return dice_score(size(a & b), size(a), size(b))

    counts = match_lesions(
        number_lesions(LabelMap(ours, volume)), number_lesions(LabelMap(theirs, volume)), smallest_size(volume),
        scale.weights,
    )  # fmt: skip
    return Comparison(
        dice=dice(ours > 0, theirs > 0),
        # A mask of one value says where blood is, not of which kind.
        dice_by_subtype={
            s.name: dice(ours == s.index, theirs == s.index) if kinds > 1 else float("nan") for s in SUBTYPES
        },
        found=size(ours > 0),
        true=size(theirs > 0),
        unit="ml" if scale.in_ml else "px",
        detected=counts.detected,
        true_lesions=counts.true,
        false_lesions=counts.false,
        found_lesions=counts.found,
    )


def false_lesions(found: LabelMap, other: Labels, known: NDArray[np.bool_] | None = None) -> Labels:
    """Return the found lesions that touch none of the other blood, as labels of 1; `known` as in `compare`."""
    seen = found.labels if known is None else np.where(known[:, None, None], found.labels, 0).astype(np.uint8)
    return _untouched(LabelMap(seen, found.volume), other > 0)


def missed_lesions(found: LabelMap, other: Labels) -> Labels:
    """Return the other lesions that no found blood touches, as labels of 1."""
    return _untouched(LabelMap(other, found.volume), found.labels > 0)


def _untouched(lesions: LabelMap, by: NDArray[np.bool_]) -> Labels:
    numbers, volume = number_lesions(lesions), lesions.volume
    voxels = np.array([np.bincount(plane.ravel(), minlength=int(numbers.max()) + 1) for plane in numbers])
    # As `match_lesions` counts them: what is smaller than a lesion is none.
    alone = (Scale.of(volume).weights @ voxels >= smallest_size(volume) * (1 - 1e-9)).astype(np.uint8)
    alone[np.unique(numbers[by])] = 0
    alone[0] = 0
    kept: Labels = alone[numbers]
    return kept


def slices_of_lesions(volume: Volume, lesions: Labels) -> list[int]:
    """Return the slice with most of each lesion, the largest lesion first."""
    numbers = number_lesions(LabelMap(lesions, volume))
    return [int(np.argmax(np.count_nonzero(numbers == n, axis=(1, 2)))) for n in range(1, int(numbers.max()) + 1)]


def truth_from_upload(volume: Volume, files: Mapping[str, bytes]) -> tuple[Labels, NDArray[np.bool_]]:
    """Read a mask that a user uploaded.

    Parameters
    ----------
    files
        Name to content: one NIfTI, or one picture for each slice.

    Returns
    -------
    tuple
        Labels in the shape of the volume, and the slices on which they are known.

    Raises
    ------
    InputError
        If it is no mask of this scan; no path of the server is named.
    """
    if not files:
        raise InputError("the mask", "is missing", "Choose a file first.")
    with tempfile.TemporaryDirectory(prefix="hemolens-mask-") as folder:
        for name, content in files.items():
            (Path(folder) / PurePath(name.replace("\\", "/")).name).write_bytes(content)
        first = Path(folder) / PurePath(next(iter(files)).replace("\\", "/")).name
        try:
            truth = read_truth(first if len(files) == 1 else Path(folder), volume)
        except InputError as error:
            raise type(error)(Path(error.source).name, error.problem, error.remedy) from error
    return truth.labels, truth.known


def models(default: str | None) -> dict[str, str]:
    """Return the networks that can be compared with: title to the name that loads them."""
    named = {model.name: model.name for model in list_models()}
    runs = settings().runs
    if runs is not None and runs.is_dir():
        named |= {f"run {card.parent.name}": str(card.parent) for card in sorted(runs.glob("*/model.json"))}
    return {title: name for title, name in named.items() if title != default}


def other_result(study: Study, name: str) -> LabelMap:
    """Return what another network finds in a scan.

    Raises
    ------
    ModelError
        If it cannot be loaded, or does not outline blood.
    """
    from hemolens.inference.predictor import Predictor
    from hemolens.inference.registry import load_model

    kept: dict[str, LabelMap] = study.extras.setdefault("other models", {})
    if name not in kept:
        told = settings()
        prediction = Predictor(load_model(name), told.runtime, told.threads).predict(study.volume)
        kept[name] = find_lesions(study.volume, prediction)[0]
    return kept[name]


def show(study: Study, ui: Any) -> None:
    """Draw the page."""
    ways = [TRUTH, MODEL]
    way = ui.radio("Compare with", ways, horizontal=True, key="compare-way")
    if way == TRUTH:
        other, known, title = _truth(study, ui)
    else:
        other, known, title = _model(study, ui)
    if other is None:
        return
    told = compare(study.label_map, other, known)
    _metrics(told, title, ui)
    left, right = split(ui)
    made_up, missed = false_lesions(study.label_map, other, known), missed_lesions(study.label_map, other)
    _explained(told, right)
    _jumps(study, {MADE_UP: made_up, MISSED: missed}, right)
    overlays = [
        label_overlay(study.labels, "found", "Corrected" if study.corrected else "Found"),
        Overlay(
            "other", title, (other > 0).astype(np.uint8), {1: OTHER_COLOR}, {1: title}, style="outline", dashed=True
        ),
        Overlay("false", MADE_UP, made_up, {1: FALSE_COLOR}, {1: MADE_UP}, style="outline"),
        Overlay("missed", MISSED, missed, {1: MISSED_COLOR}, {1: MISSED}, style="outline"),
    ]
    with left:
        show_viewer(study, overlays, key="compare")


def _truth(study: Study, ui: Any) -> tuple[Labels | None, NDArray[np.bool_] | None, str]:
    uploaded = ui.file_uploader(
        "Mask of this scan: a NIfTI on its grid, or one picture for each slice, named like it",
        accept_multiple_files=True,
        key=f"truth-{study.id}",
    )
    if uploaded:
        labels, known = truth_from_upload(study.volume, {file.name: file.getvalue() for file in uploaded})
        study.truth = labels
        study.extras["truth known"] = known
    if study.truth is None:
        ui.info("Give the mask of this scan above; nothing of it is kept on the server's disk.")
        return None, None, ""
    return study.truth, study.extras.get("truth known"), "Truth"


def _model(study: Study, ui: Any) -> tuple[Labels | None, None, str]:
    known = models(study.findings.model.name)
    if not known:
        ui.info(
            "There is no other network. Train one (hemolens train), and start hemolens web with --runs and its folder."
        )
        return None, None, ""
    title = ui.selectbox("Network", list(known), key="compare-model")
    try:
        with st.spinner(f"{title} looks at the scan …"):
            return other_result(study, known[title]).labels, None, title
    except HemolensError as error:
        ui.error(str(error))
        return None, None, ""


def _metrics(told: Comparison, title: str, ui: Any) -> None:
    cells = ui.columns(4)
    cells[0].metric("Dice of all blood", _number(told.dice))
    cells[1].metric("Volume found", format_amount(told.found, told.unit))
    cells[2].metric(f"Volume, {title.lower()}", format_amount(told.true, told.unit))
    cells[3].metric("Lesions detected", f"{told.detected} of {told.true_lesions}")


def _explained(told: Comparison, ui: Any) -> None:
    ui.markdown(
        f"**{told.false_lesions}** of {told.found_lesions} outlined lesions touch no blood of the other side (pink "
        f"outlines); **{told.true_lesions - told.detected}** of {told.true_lesions} were missed (orange outlines)."
    )
    rows = [(s.title, _number(told.dice_by_subtype[s.name])) for s in SUBTYPES]
    ui.markdown(table(("Subtype", "Dice"), rows))
    ui.caption("Dice is 1 where outlines agree, 0 where they share nothing, and – where neither side has any.")


def _jumps(study: Study, kinds: Mapping[str, Labels], ui: Any) -> None:
    """Offer to go to what only one side has."""
    for title, lesions in kinds.items():
        for number, index in enumerate(slices_of_lesions(study.volume, lesions)[:MOST_JUMPS], start=1):
            ui.button(
                f"{title}, {number}: slice {index + 1}",
                key=f"compare-{study.id}-{title}-{number}",
                on_click=session.go_to,
                args=(st.session_state, study, index),
                width="stretch",
            )


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"
