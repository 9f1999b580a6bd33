"""The page where a reader corrects the outlines: tools in the viewer, clicks on whole lesions, and saving."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from hemolens.errors import HemolensError, InputError
from hemolens.measurements.findings import format_amount
from hemolens.reports.folder import write_folder
from hemolens.web import session
from hemolens.web.corrections import Draft, is_outlined
from hemolens.web.findings import answer, findings_now
from hemolens.web.reports import AUTHOR, correction
from hemolens.web.resuming import kept_corrections, read_kept, read_saved
from hemolens.web.saving import CORRECTION, RECORD, author_name, zipped
from hemolens.web.session import Study
from hemolens.web.training_folder import add_to_training, count
from hemolens.web.viewer import ViewerEvent, label_overlay
from hemolens.web.viewer import show as show_viewer
from hemolens.web.viewing import split

HOW = """
Choose a tool in the bar above the scan:
- **Add** paints blood of the kind chosen beside it; **Erase** takes it away.
- **Click**, then press on a lesion: the whole of it, in all slices, becomes that kind, or goes with “Nothing: remove
  it”. Press on blood that nobody outlined: it is outlined.
- Without a mouse: **Enter** on the picture shows a cursor that the arrow keys move; **Enter** again puts the brush down
  and lifts it, or presses.
"""
TRAINING = "training"
"""Folder for training under that of `hemolens web --keep`."""
REFUSED = "correct refused"


def draft_of(study: Study) -> Draft:
    """Return the draft of a study; begun anew where something else has changed its outlines."""
    draft = study.extras.get("draft")
    if draft is None or draft.labels is not study.labels:
        draft = Draft.of(study.label_map)
        study.extras["draft"] = draft
    found: Draft = draft
    return found


def apply_event(study: Study, event: ViewerEvent) -> bool:
    """Do what a reader did in the viewer; return whether the outlines changed.

    A click on a lesion relabels it, or takes it away where the label is 0; a click on anything else outlines what is
    there.

    Raises
    ------
    InputError
        If it cannot be done there.
    """
    draft = draft_of(study)
    if event.kind == "stroke":
        now = draft.paint(event.slice, event.points, event.radius, event.label if event.tool != "erase" else 0)
    elif event.kind == "undo":
        now = draft.undo()
    elif event.kind == "redo":
        now = draft.redo()
    elif event.kind == "pick" and len(event.points):
        place = (event.slice, event.row, event.column)
        if event.label == 0:
            now = draft.erase_lesion(place)
        elif is_outlined(draft.label_map, place):
            now = draft.relabel_lesion(place, event.label)
        else:
            now = draft.add_lesion(place, event.label, study.prediction)
    else:
        return False
    return put(study, now)


def put(study: Study, draft: Draft) -> bool:
    """Make a draft the study's; return whether anything changed."""
    if draft.labels is study.labels:
        return False
    study.correct(draft.labels)
    # The study keeps a read-only array of its own; the draft must be known again by it.
    study.extras["draft"] = Draft(draft.volume, study.labels, draft.done, draft.undone)
    return True


def start_over(study: Study) -> None:
    """Go back to the network's outlines."""
    study.correct(study.result.label_map.labels)
    study.extras.pop("draft", None)


def show(study: Study, ui: Any) -> None:
    """Draw the page."""
    left, right = split(ui)
    with left:
        event = show_viewer(
            study,
            [label_overlay(study.labels, "corrected", "Outlines", editable=True)],
            key="correct",
            tools=True,
            said=_said(study),
        )
    if event is not None:
        _do(study, event)
    with right:
        _history(study)
        _go_on(study)
        _save(study)


def _said(study: Study) -> str:
    """Return what a screen reader says when it changes: what was refused, or the last change."""
    if REFUSED in study.extras:
        return str(study.extras[REFUSED])
    done = draft_of(study).done
    return f"Change {len(done)}: {done[-1].told()}." if done else "No change."


def _do(study: Study, event: ViewerEvent) -> None:
    with study_lock(study):
        try:
            changed = apply_event(study, event)
            refused = study.extras.pop(REFUSED, None) is not None
        except InputError as error:
            study.extras[REFUSED] = f"{error.problem[:1].upper()}{error.problem[1:]}. {error.remedy}"
            changed, refused = True, False
    if changed or refused:
        st.rerun()


def study_lock(study: Study) -> threading.Lock:
    """Return what keeps two tabs from changing a study at once."""
    lock: threading.Lock = study.extras.setdefault("lock", threading.Lock())
    return lock


def _history(study: Study) -> None:
    if REFUSED in study.extras:
        st.warning(study.extras[REFUSED])
    draft, findings = draft_of(study), findings_now(study)
    before, after = study.findings.total, findings.total
    st.markdown(
        f"Network: **{format_amount(before.size, before.unit)}** in {len(study.findings.lesions)} lesions. "
        f"Now: **{format_amount(after.size, after.unit)}** in {len(findings.lesions)}."
    )
    st.caption(answer(study.findings).headline + " (the network's answer; a correction does not change it)")
    buttons = st.columns(3)
    if buttons[0].button("Undo", icon=":material/undo:", disabled=not draft.done, width="stretch", key="undo"):
        put(study, draft.undo())
        st.rerun()
    if buttons[1].button("Redo", icon=":material/redo:", disabled=not draft.undone, width="stretch", key="redo"):
        put(study, draft.redo())
        st.rerun()
    if buttons[2].button("Start over", disabled=not study.corrected, width="stretch", key="start-over"):
        start_over(study)
        st.rerun()
    if draft.done:
        st.markdown("\n".join(f"{n}. {edit.told()}" for n, edit in enumerate(draft.done[-8:], len(draft.done[-8:]))))
    else:
        st.markdown(HOW)
    fold = st.expander("Go to a lesion")
    for lesion in findings.lesions[:8]:
        fold.button(
            f"Go to lesion {lesion.id}: {lesion.subtype}, {format_amount(lesion.size, after.unit)}",
            key=f"correct-lesion-{study.id}-{lesion.id}",
            on_click=session.go_to,
            args=(st.session_state, study, lesion.slices[len(lesion.slices) // 2]),
            width="stretch",
        )


def _go_on(study: Study) -> None:
    """Offer to take a saved correction up again."""
    with st.expander("Go on with a saved correction"):
        given = st.file_uploader(
            "The zip that you downloaded, or its mask", type=["zip", "nii", "gz"], key=f"resume-{study.id}"
        )
        if given is not None and st.button("Take it over", key=f"resume-go-{study.id}"):
            _taken_over(study, lambda: read_saved(study.volume, given.name, given.getvalue()))
        keep = session.settings().keep
        kept = kept_corrections(keep, study.volume) if keep is not None else []
        if kept:
            number = st.selectbox(
                "Kept on the server", range(len(kept)), format_func=lambda n: kept[n][0], key=f"resume-kept-{study.id}"
            )
            if st.button("Take this one over", key=f"resume-kept-go-{study.id}"):
                _taken_over(study, lambda: read_kept(study.volume, kept[number][1]))


def _taken_over(study: Study, read: Callable[[], tuple[NDArray[np.uint8], str]]) -> None:
    try:
        labels, source = read()
        with study_lock(study):
            changed = put(study, draft_of(study).take_over(labels, source))
    except HemolensError as error:
        st.error(str(error))
        return
    if changed:
        st.rerun()
    st.info("Its outlines are those that stand here already.")


def _save(study: Study) -> None:
    st.markdown("### Save")
    author = st.text_input("Your name or initials", key=AUTHOR, max_chars=64, placeholder="Ada Reader")
    seen = st.checkbox("I have looked at every slice", key=f"seen-{study.id}")
    checked = st.checkbox(
        "I vouch for the subtypes, too",
        key=f"subtypes-{study.id}",
        help="Else training learns from your outlines as blood of unknown subtype.",
    )
    if not author.strip():
        st.caption("Type your name first: a corrected mask says who made it and when.")
        return
    author_name(author)
    made = correction(study, author, subtypes_checked=checked)
    stamp = made.when.strftime("%Y%m%d-%H%M%S")
    st.download_button(
        "Download mask, SEG and record (zip)",
        lambda: zipped(made.files()),
        file_name=f"correction-{stamp}.zip",
        mime="application/zip",
        icon=":material/download:",
        on_click="ignore",
        width="stretch",
        key="download-correction",
    )
    folder = session.settings().keep
    if folder is None:
        st.caption(
            "To add corrections to a training folder, start the app with a folder to keep them in: "
            "`hemolens web --keep DIR`."
        )
        return
    keep = Path(folder)
    if st.button("Keep on the server", icon=":material/save:", width="stretch", key="keep-correction"):
        _told(lambda: f"Saved in {keep_correction(study, keep, author, checked)}.")
    if st.button(
        "Add to the training folder", icon=":material/library_add:", type="primary", disabled=not seen, width="stretch",
        key="add-to-training", help="Tick that you have looked at every slice: those without blood teach, too.",
    ):  # fmt: skip
        _told(lambda: _added(study, keep / TRAINING, author, checked))
    _training(keep / TRAINING)


def keep_correction(study: Study, keep: Path, author: str, checked: bool) -> Path:
    """Write mask, SEG and record into a folder of their own, and return it.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    made = correction(study, author, subtypes_checked=checked)
    out = keep / "corrections" / f"{made.when.strftime('%Y%m%d-%H%M%S')}-{study.id}-{study.revision}"
    if not (out / RECORD).exists():
        write_folder(out, made.files(), CORRECTION)
    return out


def _added(study: Study, folder: Path, author: str, checked: bool) -> str:
    added = add_to_training(folder, correction(study, author, subtypes_checked=checked))
    did = "replaced its earlier correction" if added.replaced else "is added"
    return f"The scan {did}: {added.scans} scans of {added.patients} patients are in {folder}."


def _told(action: Any) -> None:
    try:
        st.success(action())
    except HemolensError as error:
        st.error(str(error))


def _training(folder: Path) -> None:
    if not folder.is_dir():
        return
    scans, patients = count(folder)
    with st.expander(f"Training folder: {scans} scans of {patients} patients"):
        st.markdown("Train on it, by itself from five patients with hemorrhage on:")
        st.code(f"hemolens train effunet2d --data {folder}", language="sh")
        st.caption("Next: open the scan that the network is least sure of, on the page **Most uncertain first**.")
