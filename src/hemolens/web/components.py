"""Parts of a page that run in the browser: registered with Streamlit, their scripts served by this server."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from hemolens.web.house import PREFIX

POLL_MS = 500


@cache
def component(name: str, style: str) -> Any:
    """Register a component with Streamlit: a stub that loads the real script from this server.

    Parameters
    ----------
    name
        Of its script, which exports ``render(component)`` and ``leave(parent)``.
    style
        File of its style sheet.
    """
    import streamlit as st

    script = f"""
        const ready = import(window.location.origin + "{PREFIX}/static/{name}.js?v={static_version(f"{name}.js")}");
        export default function (component) {{
            ready.then((module) => module.render(component));
            return () => ready.then((module) => module.leave(component.parentElement));
        }}
    """
    css = (_static() / style).read_text(encoding="utf-8")
    return st.components.v2.component(f"hemolens_{name}", html="<div class='root'></div>", css=css, js=script)


def watch_jobs(jobs: Sequence[str], *, key: str) -> None:
    """Draw the progress of the room's analyses, and run the page again when one of `jobs` is over.

    The browser asks the server for it (`hemolens.web.server`), without a run of the page for each look: those would
    take the processor from the analyses, and one that comes late would call the user back to a page that was left.
    """
    data = {"jobs": f"{PREFIX}/jobs", "watched": list(jobs), "every": POLL_MS}
    component("watch", "drop.css")(key=key, data=data, on_due_change=nothing)


def repeat(seconds: float, *, key: str) -> None:
    """Run the page, or the fragment that this stands in, again after a while; never while another run is under way."""
    data: dict[str, Any] = {"jobs": None, "watched": [], "every": seconds * 1000, "drawn": time.time()}
    component("watch", "drop.css")(key=key, data=data, on_due_change=nothing)


def nothing() -> None:
    """Let what a component sent through to the session state: Streamlit wants a callback for that."""


@cache
def static_version(name: str) -> str:
    """Return a short hash of one of the scripts, for its address."""
    return hashlib.blake2b((_static() / name).read_bytes(), digest_size=6).hexdigest()


def _static() -> Any:
    return resources.files("hemolens.web.viewer") / "static"
