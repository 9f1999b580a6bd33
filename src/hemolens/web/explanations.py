"""Where the network saw its evidence: Grad-CAM or occlusion, drawn over the scan."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st

from hemolens.errors import DependencyError, HemolensError
from hemolens.labels import FINDING_NAMES
from hemolens.web import session
from hemolens.web.findings import findings_now
from hemolens.web.session import Study, settings
from hemolens.web.viewer import Overlay, label_overlay
from hemolens.web.viewer import show as show_viewer

if TYPE_CHECKING:
    from hemolens.explain.run import Explanation

METHODS = {
    "gradcam": "Grad-CAM: what the network's last features rest on (seconds)",
    "gradcam++": "Grad-CAM++: the same, weighted for several lesions (seconds)",
    "occlusion": "Occlusion: how much the answer falls when a patch is hidden (a minute or more)",
}
SLICES = 5
"""Asked at first: the likeliest ones."""


def suggested_slices(study: Study) -> list[int]:
    """Return the slices that are worth asking about: those with the highest probability, in their order."""
    chances = study.prediction.slice_probability[:, 0]
    return sorted(int(k) for k in np.argsort(-chances, kind="stable")[:SLICES])


def explained(study: Study, method: str, finding: str, slices: tuple[int, ...], tell: Any = None) -> Explanation:
    """Ask the network of a study where it saw a finding; kept with the study.

    Raises
    ------
    DependencyError
        If torch is not installed.
    HemolensError
        If the method does not fit the network.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("monai") is None:
        raise DependencyError("torch", "train")
    from hemolens.explain.run import ExplainConfig, explain
    from hemolens.explain.subject import open_subject

    kept: dict[Any, Explanation] = study.extras.setdefault("explanations", {})
    key = (method, finding, slices)
    if key not in kept:
        config = ExplainConfig(method=method, finding=finding)  # type: ignore[arg-type]  # checked by it
        subject = open_subject(settings().model, gradients=method != "occlusion")
        if subject.judge is not None:  # the scan was judged already
            subject = replace(subject, judge=lambda volume: study.prediction.slice_probability)
        kept[key] = explain(study.volume, subject, config, slices or None, tell)
    return kept[key]


def evidence_overlay(explanation: Explanation) -> Overlay:
    """Return the map as an overlay; slices that were not asked show nothing."""
    values = explanation.values.astype(np.float32, copy=True)
    hidden = np.setdiff1d(np.arange(len(values)), explanation.slices)
    values[hidden] = np.nan
    return Overlay("evidence", "Evidence", values, style="fill", opacity=0.6)


def show(study: Study, ui: Any) -> None:
    """Draw the page."""
    ui.markdown(
        "A map shows where in the image the network's answer rests. It is a clue to mistakes, such as evidence outside "
        "the brain, and no outline of blood."
    )
    bar = ui.container(key="hemolens_split_bar").columns([3, 2, 3], vertical_alignment="bottom")
    method = bar[0].selectbox("Method", list(METHODS), format_func=lambda name: METHODS[name], key="explain-method")
    finding = bar[1].selectbox("Finding", FINDING_NAMES, key="explain-finding")
    slices = bar[2].multiselect(
        "Slices",
        range(len(study.volume)),
        default=suggested_slices(study),
        format_func=lambda k: str(k + 1),
        key=f"explain-slices-{study.id}",
    )
    if ui.button("Show the evidence", type="primary", disabled=not slices, key="explain-go"):
        bar_told = ui.progress(0.0, text="Asking the network …")
        try:
            found = explained(
                study, method, finding, tuple(sorted(slices)),
                lambda share: bar_told.progress(min(share, 1.0), text="Asking the network …"),
            )  # fmt: skip
            study.extras["explanation shown"] = found
            session.go_to(st.session_state, study, max(found.samples, key=lambda s: s.logit).slices[0])
        except HemolensError as error:
            ui.error(str(error))
        bar_told.empty()
    shown: Explanation | None = study.extras.get("explanation shown")
    overlays = [label_overlay(study.labels, "found", "Corrected" if study.corrected else "Found")]
    if shown is not None:
        overlays = [evidence_overlay(shown), overlays[0]]
        told = METHODS[shown.config.method].split(":")[0]
        ui.caption(
            f"{told} for “{shown.config.finding}” on {len(shown.slices)} slices: yellow is the strongest evidence. "
            f"{len(findings_now(study).lesions)} lesions are outlined beside it."
        )
    show_viewer(study, overlays, key="explain")
