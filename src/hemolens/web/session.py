"""What a browser's session holds: the studies that are open, and which of them is shown.

Pages take a `Study` and ask nothing else. The studies live in the browser's room on the server (`hemolens.web.house`),
so a refreshed page finds them again; which one is shown belongs to the page (Streamlit's session state, or any
mapping in tests).
"""

from __future__ import annotations

import secrets
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import InputError
from hemolens.volume import LabelMap, Volume
from hemolens.web.house import Room, WebSettings, house

if TYPE_CHECKING:
    from hemolens.analysis import Result
    from hemolens.inference.prediction import Prediction
    from hemolens.measurements.findings import Findings

State = MutableMapping[Any, Any]
Origin = Literal["upload", "demo", "path", "pacs"]

ROOM = "hemolens_room"
CURRENT = "hemolens_current"
GO_TO = "hemolens_go_to"


@dataclass(eq=False)
class Study:
    """One scan, what was found in it, and what a reader made of that."""

    name: str
    """As its owner named it; shown to its owner only, never logged."""
    result: Result
    """What the network found; never changed."""
    labels: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))
    """The label map as it stands now: the network's until it is corrected. Change it with `correct` only."""
    origin: Origin = "upload"
    truth: NDArray[np.uint8] | None = None
    """Known lesions on the grid of the scan, as for the demo; else None until the user gives a mask."""
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    revision: int = 0
    """Rises with every correction."""
    opened: datetime = field(default_factory=lambda: datetime.now(UTC))
    extras: dict[str, Any] = field(default_factory=dict)
    """What pages keep with the study: maps, another model's result, the history of corrections."""

    def __post_init__(self) -> None:
        if not self.labels.size:
            self.labels = self.result.label_map.labels

    @property
    def volume(self) -> Volume:
        """The scan."""
        return self.result.volume

    @property
    def prediction(self) -> Prediction:
        """What the network said."""
        return self.result.prediction

    @property
    def findings(self) -> Findings:
        """What was measured of the network's answer."""
        return self.result.findings

    @property
    def label_map(self) -> LabelMap:
        """The label map as it stands now."""
        return LabelMap(self.labels, self.volume)

    @property
    def corrected(self) -> bool:
        """Whether the label map differs from the network's."""
        return self.labels is not self.result.label_map.labels and not np.array_equal(
            self.labels, self.result.label_map.labels
        )

    def correct(self, labels: NDArray[np.uint8]) -> None:
        """Replace the label map by another of the same shape.

        Raises
        ------
        InputError
            If the shape is another.
        """
        if labels.shape != self.volume.shape:
            raise InputError(
                self.name,
                f"a mask of shape {labels.shape} cannot belong to a scan of shape {self.volume.shape}",
                "Use the mask of this very scan.",
            )
        kept = np.ascontiguousarray(labels, dtype=np.uint8)
        kept.setflags(write=False)
        self.labels = kept
        self.revision += 1


def settings() -> WebSettings:
    """Return what the server was told."""
    return house().settings


def room(state: State) -> Room:
    """Return the room of this page; a page that has none gets a new one."""
    if ROOM not in state:
        state[ROOM] = house().room(None)
    found: Room = state[ROOM]
    return found


def enter(state: State, token: str | None) -> bool:
    """Take this page into the room that the browser's cookie names; False if there is no such room any more."""
    if ROOM in state:
        return True
    found = house().known(token) if token else house().room(None)
    if found is None:
        return False
    state[ROOM] = found
    return True


def studies(state: State) -> tuple[Study, ...]:
    """Return the open studies, in the order they were opened."""
    mine = room(state)
    with mine.lock:
        return tuple(mine.studies.values())


def current(state: State) -> Study | None:
    """Return the study that is shown: the chosen one, else the last that was opened; None if there is none."""
    mine = room(state)
    with mine.lock:
        chosen = mine.studies.get(state.get(CURRENT, ""))
        return chosen or (list(mine.studies.values())[-1] if mine.studies else None)


def choose(state: State, study: Study) -> None:
    """Show this study."""
    state[CURRENT] = study.id


def add(state: State, study: Study) -> None:
    """Open a study in this room, and show it.

    Raises
    ------
    InputError
        If as many are open as the server allows.
    """
    put(room(state), study)
    choose(state, study)


def put(mine: Room, study: Study) -> None:
    """Open a study in a room, under a name that no other study there has.

    Raises
    ------
    InputError
        If as many are open as the server allows.
    """
    most = settings().max_studies
    with mine.lock:
        if len(mine.studies) >= most:
            raise InputError(study.name, f"{most} studies are open already", "Close one first.")
        taken = {other.name for other in mine.studies.values()}
        name, number = study.name, 2
        while study.name in taken:
            study.name, number = f"{name} ({number})", number + 1
        mine.studies[study.id] = study


def close(state: State, study: Study) -> None:
    """Forget a study."""
    mine = room(state)
    with mine.lock:
        mine.studies.pop(study.id, None)
        for name in [name for name in mine.shelf if name.startswith(f"{study.id}-")]:
            del mine.shelf[name]


def go_to(state: State, study: Study, index: int) -> None:
    """Let the viewers of this study jump to slice `index` (from 0) when they are drawn next."""
    number = int(state.get(GO_TO, {}).get("number", 0)) + 1
    state[GO_TO] = {"study": study.id, "slice": int(index), "number": number}


def requested_slice(state: State, study: Study) -> tuple[int, int] | None:
    """Return the slice that `go_to` asked for and the number of the request, or None."""
    asked = state.get(GO_TO)
    if not asked or asked["study"] != study.id:
        return None
    return int(asked["slice"]), int(asked["number"])
