"""What stands around every page: the menu, the open studies, and the notice."""

from __future__ import annotations

from functools import partial
from importlib import resources
from importlib.util import find_spec
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from hemolens.errors import HemolensError
from hemolens.measurements.findings import NOTICE
from hemolens.web import opening, session
from hemolens.web.house import Room, house
from hemolens.web.pages import PAGES, Page

START = "start"
STYLE = """
.block-container, [data-testid="stMainBlockContainer"] { padding: 2.6rem 2rem 1rem; }
@media (max-width: 1100px) { .block-container, [data-testid="stMainBlockContainer"] { padding: 2.6rem .8rem 1rem; } }
[class*="st-key-hemolens_split"] > [data-testid="stLayoutWrapper"] > [data-testid="stHorizontalBlock"] {
  flex-wrap: wrap;
  > [data-testid="stColumn"] { min-width: min(100%, 300px); }
}
[data-testid="stMarkdownContainer"] h3 { font-size: 1.3rem; padding: .6rem 0 .3rem; }
[data-testid="stMarkdownContainer"] :is(th, td) { padding: .35rem .4rem; font-size: .9rem; }
[class*="st-key-hemolens_split"] [data-testid="stMarkdownContainer"] :is(th, td) {
  padding: .35rem .25rem; font-size: .8rem;
}
[data-testid="stMarkdownContainer"]:has(> table) { overflow-x: auto; }
[data-variant="segmented_control"][aria-checked="true"] p { color: #ff9d96 !important; }
:is(a, button, summary, [tabindex="0"], [role="tab"]):focus-visible, label:has(input:focus-visible) {
  outline: 3px solid #6cb6ff !important; outline-offset: 1px;
}
"""
"""Room for pictures: Streamlit leaves wide margins, and on a tablet the findings belong below the picture.

What has the focus shows it as the viewer's own buttons do.
"""
NO_STUDY = "No scan is open. Open one first: drop files on the start page, or look at the demo."


def run() -> None:
    """Draw the page that the address names."""
    # A file of our own: Streamlit fetches every other icon of a tab from elsewhere.
    icon = str(resources.files("hemolens.web") / "icon.png")
    st.set_page_config(page_title="hemolens", page_icon=icon, layout="wide", initial_sidebar_state="auto")
    st.html(f"<style>{STYLE}</style>")
    if not session.enter(st.session_state, dict(st.context.cookies).get(session.settings().cookie)):
        st.warning("The server was restarted, or this page was left for long. Reload the page to go on.")
        st.stop()
    _visit(session.room(st.session_state))
    opening.collect(st.session_state)
    chosen = st.navigation(_menu(), position="sidebar")
    with st.sidebar:
        _studies()
    if chosen.url_path not in {"", START}:
        st.session_state.pop(opening.SHOW_IT, None)
    elif st.session_state.get(opening.SHOW_IT, False):
        # Kept until the other page is there: this run may be interrupted by a poll of the progress bar.
        st.switch_page(pages()["view"])
    chosen.run()
    st.caption(NOTICE)


def pages() -> dict[str, Any]:
    """Return Streamlit's page of each path; those whose module is not there are left out."""
    made = {START: st.Page(opening.show, title="Open", icon=":material/folder_open:", url_path=START, default=True)}
    for page in PAGES:
        if find_spec(f"hemolens.web.{page.module}") is not None:
            made[page.path] = st.Page(partial(_draw, page), title=page.title, icon=page.icon, url_path=page.path)
    return made


def _menu() -> dict[str, list[Any]]:
    made = pages()
    menu: dict[str, list[Any]] = {"": [made[START]]}
    for page in PAGES:
        if page.path in made:
            menu.setdefault(page.section, []).append(made[page.path])
    return menu


def _draw(page: Page) -> None:
    """Draw one page; an error that its user can act on is one sentence."""
    st.header(page.title, anchor=False)
    try:
        if not page.needs_study:
            page.load().show(st)
            return
        study = session.current(st.session_state)
        if study is None:
            st.info(NO_STUDY)
            st.page_link(pages()[START], label="Open a scan")
            return
        page.load().show(study, st)
    except HemolensError as error:
        st.error(str(error))


def _studies() -> None:
    """List the open studies and let one be chosen or closed."""
    st.subheader("Open scans", anchor=False)
    found = session.studies(st.session_state)
    current = session.current(st.session_state)
    if not found or current is None:
        st.caption("None yet. Drop a scan on the page **Open**, or look at the demo.")
        return
    ids = [study.id for study in found]
    names = {study.id: study.name for study in found}
    scores = {study.id: float(study.prediction.study_probability[0]) for study in found}
    chosen = st.radio(
        "Scan that is shown",
        ids,
        index=ids.index(current.id),
        format_func=lambda one: names.get(one, one),
        captions=[f"{'positive' if s.prediction.positive else 'negative'}, {scores[s.id]:.0%}" for s in found],
        label_visibility="collapsed",
    )
    if chosen != current.id:
        session.choose(st.session_state, next(s for s in found if s.id == chosen))
        st.rerun()
    if st.button("Close this scan", icon=":material/close:", help="Forget it: nothing of it stays on the server."):
        session.close(st.session_state, current)
        st.rerun()


def _left(visit: tuple[Room, str]) -> None:
    house().leave(*visit)


@st.cache_resource(scope="session", on_release=_left, show_spinner=False)
def _visit(_room: Room) -> tuple[Room, str]:
    """Count this tab as a visitor of the room until it is closed."""
    context = get_script_run_ctx(suppress_warning=True)
    page = "" if context is None else context.session_id
    house().enter(_room, page)
    return _room, page
