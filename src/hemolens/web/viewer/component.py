"""The Streamlit side of the viewer: lays out what it fetches, mounts it, and reads what the user did."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemolens.labels import FINDING_NAMES, SUBTYPES
from hemolens.measurements.lesions import number_lesions
from hemolens.reports.figures import BLOOD_WINDOW, key_slices
from hemolens.web import session
from hemolens.web.components import component, nothing, static_version
from hemolens.web.house import PREFIX, Room, Shelved
from hemolens.web.session import Study
from hemolens.web.viewer.model import Overlay, ViewerEvent
from hemolens.web.viewer.turning import Turned, turned

CHUNK_BYTES = 2**23
"""About what the viewer fetches at once."""
STYLE = "viewer.css"
FIRST = "viewer-first"
HANDLED = "hemolens_viewer_handled"


def show(
    study: Study,
    overlays: Sequence[Overlay] = (),
    *,
    key: str,
    tools: bool = False,
    tell_slice: bool = False,
    said: str = "",
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
        Offer brush, eraser and pick; their strokes come back as events, one for each run: run the page again after
        handling one, and the next is returned.
    tell_slice
        Also return an event when scrolling has come to rest, for pages that need to know the slice.
    said
        What was done last: a screen reader says it when it changes.
    height
        Of the picture in CSS pixels; on a narrow page it is less.

    Raises
    ------
    ValueError
        If two overlays have one name, more than one is editable, or one does not fit the scan.
    """
    import streamlit as st

    _check(study, overlays)
    room = session.room(st.session_state)
    mounted = f"{key}-{study.id}"
    handled = st.session_state.setdefault(HANDLED, {}).setdefault(mounted, {})
    event = take_event((st.session_state.get(mounted) or {}).get("event"), handled, study)
    data = {
        **scan_data(study),
        "overlays": [lay_out(room, study, key, overlay) for overlay in overlays],
        "goTo": session.requested_slice(st.session_state, study),
        "tools": tools,
        "tellSlice": tell_slice,
        "said": said,
        "pictureHeight": height,
        "handled": dict(handled),
        "threshold": study.prediction.study_threshold,
    }
    component("viewer", STYLE)(key=mounted, data=data, on_event_change=nothing)
    return event


def show_3d(study: Study, *, key: str, height: int = 640) -> None:
    """Draw three planes and the head in 3D, the skull half transparent, lesions colored."""
    import streamlit as st

    from hemolens.web.viewer import planes

    room = session.room(st.session_state)
    base = f"{study.id}-{key}"
    labels = study.labels
    parts = {"planes": planes.SPACING_MM, "coarse": planes.COARSE_MM, "solid": planes.SOLID_MM}
    with room.lock:
        for part, mm in parts.items():
            head, lesions = partial(planes.head_nifti, study, mm), partial(planes.lesions_nifti, study, labels, mm)
            room.shelf[f"{base}-{part}-head"] = Shelved("application/octet-stream", head, True)
            room.shelf[f"{base}-{part}-lesions"] = Shelved("application/octet-stream", lesions, True)
    data = {
        "study": study.id,
        "name": study.name,
        **{
            part: [f"{PREFIX}/shelf/{base}-{part}-head", f"{PREFIX}/shelf/{base}-{part}-lesions?r={study.revision}"]
            for part in parts
        },
        "library": f"{PREFIX}/static/niivue.js?v={static_version('niivue.js.gz')}",
        "subtypes": _legend(),
        "window": [BLOOD_WINDOW.low_hu, BLOOD_WINDOW.high_hu],
        "center": planes.center_mm(study),
        "pictureHeight": height,
    }
    component("planes", STYLE)(key=f"{base}-3d", data=data)


def scan_data(study: Study) -> dict[str, Any]:
    """Return what the viewer must know of a scan, beside its pixels."""
    how, volume = turned(study), study.volume
    views = how.views
    window = volume.source.window or BLOOD_WINDOW
    return {
        "study": study.id,
        "name": study.name,
        "slices": len(volume),
        "rows": how.height,
        "columns": how.width,
        "rowMm": [v.row_mm for v in views],
        "columnMm": [v.column_mm for v in views],
        "letters": [[v.left, v.right, v.top, v.bottom] for v in views],
        "ends": _ends(study),
        "slope": how.slope,
        "intercept": how.intercept,
        "approximate": volume.source.window is not None,
        "window": [window.level_hu, window.width_hu],
        "labels": [volume.slice_label(k) for k in range(len(volume))],
        "probability": np.round(study.prediction.slice_probability.astype(np.float64), 4).tolist(),
        "findings": list(FINDING_NAMES),
        "subtypes": _legend(),
        "first": first_slice(study),
        "chunk": max(1, CHUNK_BYTES // (2 * how.height * how.width)),
        "scan": f"{PREFIX}/scan/{study.id}",
    }


def first_slice(study: Study) -> int:
    """Return the slice to show first: through the largest lesion, else the likeliest."""
    if FIRST not in study.extras:
        lesions, scores = study.findings.lesions, study.prediction.slice_probability[:, 0]
        numbers = number_lesions(study.result.label_map) if lesions else None
        found = key_slices(numbers, lesions[:1], scores, 1)[0] if numbers is not None else int(np.argmax(scores))
        study.extras[FIRST] = found
    return int(study.extras[FIRST])


def lay_out(room: Room, study: Study, key: str, overlay: Overlay) -> dict[str, Any]:
    """Put an overlay where the viewer can fetch it, and return what it must know of it."""
    name = f"{study.id}-{key}-{overlay.name}"
    how, values = turned(study), overlay.values
    with room.lock:
        known = room.shelf.get(name)
        if known is None or known.source is not values:
            digest = hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=8).hexdigest()
            make = partial(overlay_bytes, values, how)
            present = tuple(int(v) for v in np.flatnonzero(np.bincount(values.ravel()))) if overlay.is_labels else ()
            room.shelf[name] = Shelved("application/octet-stream", make, True, digest, values, present)
        laid = room.shelf[name]
    return {
        "name": overlay.name,
        "title": overlay.title,
        "url": f"{PREFIX}/shelf/{name}?r={laid.digest}",
        "kind": "labels" if overlay.is_labels else "shades",
        "colors": {str(k): list(c) for k, c in overlay.colors.items()},
        "titles": {str(k): t for k, t in overlay.titles.items()},
        "present": [label for label in laid.present if label],
        "ramp": [list(c) for c in overlay.ramp],
        "style": overlay.style,
        "opacity": overlay.opacity,
        "dashed": overlay.dashed,
        "editable": overlay.editable,
    }


def overlay_bytes(values: NDArray[Any], how: Turned) -> bytes:
    """Return an overlay as the viewer reads it: one byte for each pixel, turned, gzipped."""
    if np.issubdtype(values.dtype, np.floating):
        shades = np.nan_to_num(np.clip(values.astype(np.float32), 0, 1), nan=0.0)
        values = np.round(shades * 255).astype(np.uint8)
    shown = how.turn(values.astype(np.uint8, copy=False), 0, len(values), 0)
    return gzip.compress(shown.tobytes(), compresslevel=1, mtime=0)


def take_event(sent: Any, handled: dict[str, int], study: Study) -> ViewerEvent | None:
    """Return the first event that was not returned before, and note that it was.

    Parameters
    ----------
    sent
        What the browser sent: ``{"mount": …, "events": [{"seq": …, …}, …]}``, those it has no answer to, oldest first.
    handled
        Last number that was handled, for each mount of the viewer; changed here.
    study
        Whose grid the points are wanted on.
    """
    if not isinstance(sent, Mapping):
        return None
    mount, last = str(sent.get("mount", ""))[:40], 0
    last = handled.get(mount, 0)
    for told in sent.get("events") or ():
        if int(told.get("seq", 0)) > last:
            handled[mount] = int(told["seq"])
            event = read_event(told, study)
            if event is not None:
                return event
    return None


def read_event(told: Mapping[str, Any], study: Study) -> ViewerEvent | None:
    """Return what the browser told as an event on the source grid; None if it makes no sense."""
    kind, index = told.get("kind"), int(told.get("slice", -1))
    if kind not in {"stroke", "pick", "slice", "undo", "redo"} or not 0 <= index < len(study.volume):
        return None
    how = turned(study)
    points = np.asarray(told.get("points") or np.zeros((0, 2)), dtype=np.float64).reshape(-1, 2)
    if kind in {"stroke", "pick"} and (not len(points) or not np.isfinite(points).all()):
        return None
    tool, label = told.get("tool"), int(told.get("label", 0))
    if not 0 <= label <= len(SUBTYPES) or tool not in {None, "brush", "erase", "pick"}:
        return None
    radius = told.get("radius") or (0.0, 0.0)
    return ViewerEvent(
        kind=kind,
        slice=index,
        tool=tool,
        label=label,
        points=how.to_source(index, points),
        radius=how.radius_to_source(index, (float(radius[0]), float(radius[1]))),
    )


def _check(study: Study, overlays: Sequence[Overlay]) -> None:
    if len({o.name for o in overlays}) < len(overlays):
        raise ValueError("two overlays have one name")
    if sum(o.editable for o in overlays) > 1:
        raise ValueError("more than one overlay is editable")
    for overlay in overlays:
        if overlay.values.shape != study.volume.shape:
            raise ValueError(f"overlay '{overlay.name}' has shape {overlay.values.shape}, not {study.volume.shape}")


def _ends(study: Study) -> list[str]:
    """Return what lies before the first slice and beyond the last: letters, or nothing where it is not known."""
    if study.volume.stack is None:
        return ["", ""]
    x, y, z = study.volume.stack.normal
    axis = int(np.argmax(np.abs([x, y, z])))
    negative, positive = (("R", "L"), ("A", "P"), ("F", "H"))[axis]
    return [negative, positive] if (x, y, z)[axis] > 0 else [positive, negative]


def _legend() -> list[dict[str, Any]]:
    return [{"label": s.index, "title": s.title, "short": s.abbreviation, "color": list(s.color_rgb)} for s in SUBTYPES]
