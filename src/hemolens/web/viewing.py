"""The page that shows a scan: slices or three planes, a second scan beside it, and the findings."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import streamlit as st

from hemolens.web import session
from hemolens.web.session import Study
from hemolens.web.viewer import Overlay, label_overlay
from hemolens.web.viewer.component import show as show_slices
from hemolens.web.viewer.component import show_3d

SLICES, SPACE = "Slices", "Three planes and 3D"
TRUTH_COLOR = (255, 255, 255)


def show(study: Study, ui: Any) -> None:
    """Draw the page."""
    others = [s for s in session.studies(st.session_state) if s.id != study.id]
    bar = ui.container(key="hemolens_split_bar").columns(2, vertical_alignment="bottom") if others else [ui, ui]
    how = bar[0].segmented_control("How to look at it", [SLICES, SPACE], default=SLICES, key="hemolens_how")
    beside = None
    if others and how != SPACE:
        names = {s.id: s.name for s in others}
        chosen = bar[1].selectbox(
            "Beside it", [None, *names], format_func=lambda one: names.get(one, "nothing"), key="hemolens_beside"
        )
        beside = next((s for s in others if s.id == chosen), None)
    if how == SPACE:
        show_3d(study, key="view-3d")
    elif beside is not None:
        left, right = split(ui, 1, 1)
        for column, one, key in ((left, study, "left"), (right, beside, "right")):
            with column:
                st.subheader(one.name, anchor=False)
                show_slices(one, overlays(one), key=f"view-{key}", height=560)
    else:
        left, right = split(ui)
        with left:
            show_slices(study, overlays(study), key="view")
        with right:
            _findings(study, right)


def split(ui: Any, *shares: int) -> Any:
    """Return two columns that stand below each other where the page is narrow."""
    return ui.container(key="hemolens_split").columns(shares or (8, 5))


def overlays(study: Study) -> list[Overlay]:
    """Return what is drawn over a scan: what was found (or corrected), and the truth where it is known."""
    title = "Corrected" if study.corrected else "Found"
    drawn = [label_overlay(study.labels, "found", title)]
    if study.truth is not None:
        drawn.append(Overlay("truth", "Truth", study.truth, style="hidden", dashed=True))
    return drawn


def _findings(study: Study, ui: Any) -> None:
    if find_spec("hemolens.web.findings") is not None:
        import_module("hemolens.web.findings").show(study, ui)
