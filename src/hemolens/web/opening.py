"""The first page: drop a scan or open the demo, and watch the analysis by stage."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import streamlit as st

from hemolens.demo import demo_source, demo_truth
from hemolens.errors import HemolensError
from hemolens.sources.study import ReadOptions
from hemolens.volume import DisplayWindow
from hemolens.web import session
from hemolens.web.house import GIB, house
from hemolens.web.jobs import STAGE_TITLES, STAGES, Job, Order, Stage
from hemolens.web.viewer.component import PREFIX, static_version

SHOW_IT = "hemolens_show_it"
TAKEN = "hemolens_taken"
POLL_S = 0.4
WATCH_S = 2.0
INTRO = """Drop a **head CT**: a DICOM zip, a DICOM folder or its files, a NIfTI file, or PNG and JPEG slices.
It is read on this server, never sent elsewhere, and forgotten when you close it."""


def show() -> None:
    """Draw the page."""
    st.header("Open a scan", anchor=False)
    st.markdown(INTRO)
    drop_box()
    columns = st.columns([1, 2], vertical_alignment="center")
    if columns[0].button("Open the demo", icon=":material/play_arrow:", type="primary", width="stretch"):
        open_demo()
        st.rerun()
    columns[1].caption("A computed phantom head with four bleeds of known volume: no patient.")
    jobs = _jobs()
    if any(job.state in {Stage.DONE, Stage.CANCELED} for job in jobs):
        st.rerun()  # it ended since `collect` looked
    if any(not job.over for job in jobs):
        st.fragment(_progress, run_every=POLL_S)()
    else:
        _outcomes(jobs)
    st.fragment(_watch, run_every=WATCH_S)()


def open_demo() -> Job:
    """Analyze the phantom head that ships with hemolens."""
    order = Order("Demo (phantom head)", demo_source(), origin="demo", truth=lambda: demo_truth().labels())
    return house().office.submit(session.room(st.session_state), order)


def drop_box() -> None:
    """Draw the place where files are dropped, and order what was dropped to be analyzed."""
    options = _picture_options()
    taken: list[str] = st.session_state.setdefault(TAKEN, [])
    dropped = (st.session_state.get("hemolens_drop") or {}).get("dropped")
    if isinstance(dropped, dict) and str(dropped.get("batch")) not in taken:
        taken.append(str(dropped["batch"]))
        _order(str(dropped["batch"]), options)
    limit = session.settings().max_upload_bytes
    _drop_component()(
        key="hemolens_drop",
        data={"upload": f"{PREFIX}/upload", "limit": limit, "limitText": f"{limit / GIB:.3g} GiB", "taken": taken},
        on_dropped_change=_nothing,
    )


def collect(state: session.State) -> None:
    """Take finished analyses off the list, and show the newest study."""
    room = session.room(state)
    with room.lock:
        for job in [j for j in room.jobs.values() if j.state in {Stage.DONE, Stage.CANCELED}]:
            del room.jobs[job.id]
            study = room.studies.get(job.study_id or "")
            if study is not None:
                session.choose(state, study)
                state[SHOW_IT] = not any(not j.over for j in room.jobs.values())


def _order(key: str, options: ReadOptions) -> None:
    room = session.room(st.session_state)
    batch = room.take_batch(key)
    if batch is None or not batch.names:
        st.error("Nothing arrived. Drop the files again.")
        return
    _forget_outcomes()
    try:
        for order in batch.orders(options):
            house().office.submit(room, order)
    except (HemolensError, OSError) as error:
        batch.delete()
        st.error(str(error))


def _picture_options() -> ReadOptions:
    """Ask what only the user knows of 8-bit slices."""
    with st.expander("Slice images (PNG, JPEG): window and spacing"):
        st.caption(
            "Pictures carry no Hounsfield units and no millimeters. Say how they were made; without spacing, sizes are "
            "given in pixels. DICOM and NIfTI need nothing here."
        )
        columns = st.columns(4)
        level = columns[0].number_input("Window level (HU)", value=40.0, step=5.0, key="hemolens_level")
        width = columns[1].number_input(
            "Window width (HU)", value=120.0, min_value=1.0, step=10.0, key="hemolens_width"
        )
        pixel = columns[2].number_input(
            "Pixel size (mm)", value=None, min_value=0.01, max_value=10.0, step=0.1, key="hemolens_pixel"
        )
        gap = columns[3].number_input(
            "Distance of slices (mm)", value=None, min_value=0.01, max_value=50.0, step=0.5, key="hemolens_gap"
        )
        if (pixel is None) != (gap is None):
            st.warning("Give both the pixel size and the distance of slices, or neither.")
            pixel = gap = None
    return ReadOptions(window=DisplayWindow(level, width), pixel_spacing_mm=pixel, slice_spacing_mm=gap)


def _jobs() -> list[Job]:
    room = session.room(st.session_state)
    with room.lock:
        return list(room.jobs.values())


def _watch() -> None:
    """Go on with a finished scan that a run of the page missed because it was interrupted."""
    if st.session_state.get(SHOW_IT, False) or any(job.state in {Stage.DONE, Stage.CANCELED} for job in _jobs()):
        st.rerun()


def _progress() -> None:
    """Draw the running analyses; called again and again until one of them is over."""
    jobs = _jobs()
    if any(job.over for job in jobs) or not jobs:
        st.rerun()
    for job in jobs:
        columns = st.columns([6, 1], vertical_alignment="bottom")
        columns[0].progress(job.fraction, text=stage_text(job, house().office.before(job)))
        if columns[1].button("Stop", key=f"stop-{job.id}", help=f"Stop the analysis of {job.name}"):
            job.cancel()


def stage_text(job: Job, before: int) -> str:
    """Return what a job is doing, for people."""
    if job.state is Stage.WAITING:
        return f"{job.name}: waiting" + (f" for {before} other scan{'s' if before > 1 else ''}" if before else "")
    number = STAGES.index(job.stage) + 1 if job.stage in STAGES else len(STAGES)
    return f"{job.name}: {STAGE_TITLES.get(job.stage, job.stage)} (step {number} of {len(STAGES)})"


def _outcomes(jobs: list[Job]) -> None:
    for job in jobs:
        if job.state is Stage.FAILED:
            st.error(job.message, icon=":material/error:")
    if any(job.state is Stage.FAILED for job in jobs) and st.button("Clear messages"):
        _forget_outcomes()
        st.rerun()


def _forget_outcomes() -> None:
    room = session.room(st.session_state)
    with room.lock:
        for job in [j for j in room.jobs.values() if j.over]:
            del room.jobs[job.id]


def _nothing() -> None:
    """Let what was dropped through to the session state: Streamlit wants a callback for that."""


@cache
def _drop_component() -> Any:
    script = f"""
        const ready = import(window.location.origin + "{PREFIX}/static/drop.js?v={static_version("drop.js")}");
        export default function (component) {{ ready.then((module) => module.render(component)); }}
    """
    css = (resources.files("hemolens.web.viewer") / "static" / "drop.css").read_text(encoding="utf-8")
    return st.components.v2.component("hemolens_drop", html="<div class='root'></div>", css=css, js=script)
