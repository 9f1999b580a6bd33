"""The Streamlit side of the viewer."""

from __future__ import annotations

from collections.abc import Sequence

from hemolens.web.session import Study
from hemolens.web.viewer.model import Overlay, ViewerEvent


def show(
    study: Study,
    overlays: Sequence[Overlay] = (),
    *,
    key: str,
    tools: bool = False,
    tell_slice: bool = False,
    height: int = 640,
) -> ViewerEvent | None:
    """Draw the axial viewer and return what the user did since the last run, or None.

    Parameters
    ----------
    study
        What to show. `hemolens.web.session.go_to` makes the viewer jump.
    overlays
        Drawn in this order. One of them may be `editable`.
    key
        Streamlit's key; different for every viewer on a page.
    tools
        Offer brush, eraser and pick; their strokes come back as events.
    tell_slice
        Also return an event when scrolling has come to rest, for pages that need to know the slice.
    height
        Of the picture in CSS pixels; on a narrow page it is less.
    """
    raise NotImplementedError


def show_3d(study: Study, *, key: str, height: int = 640) -> None:
    """Draw three planes and the head in 3D, the skull half transparent, lesions colored."""
    raise NotImplementedError
