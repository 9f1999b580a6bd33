"""The first page: drop a scan or open the demo, and watch the analysis by stage."""

from __future__ import annotations

import streamlit as st

from hemolens.demo import demo_source, demo_truth
from hemolens.errors import HemolensError
from hemolens.sources.study import ReadOptions
from hemolens.volume import DisplayWindow
from hemolens.web import session
from hemolens.web.components import component, nothing, watch_jobs
from hemolens.web.house import GIB, PREFIX, house
from hemolens.web.jobs import Job, Order, Stage

SHOW_IT = "hemolens_show_it"
TAKEN = "hemolens_taken"
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
    columns[1].caption("A computed phantom head with three bleeds of known volume: no patient.")
    jobs = _jobs()
    if any(_ended(job) for job in jobs):
        st.rerun()  # it ended since `collect` looked
    watch_jobs([job.id for job in jobs if not job.over], key="hemolens_watch")
    _outcomes(jobs)


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
    component("drop", "drop.css")(
        key="hemolens_drop",
        data={"upload": f"{PREFIX}/upload", "limit": limit, "limitText": f"{limit / GIB:.3g} GiB", "taken": taken},
        on_dropped_change=nothing,
    )


def collect(state: session.State) -> None:
    """Take finished analyses off the list, and show the newest study."""
    room = session.room(state)
    with room.lock:
        for job in [j for j in room.jobs.values() if _ended(j)]:
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


def _ended(job: Job) -> bool:
    return job.over and job.state is not Stage.FAILED


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
