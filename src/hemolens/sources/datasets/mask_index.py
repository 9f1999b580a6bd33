"""Which labels each slice of a mask file holds, read once and kept beside the data set as ``hemolens-masks.csv``.

Opening a data set reads no pixels; but where nothing except the masks says which slices bleed (BHSD, INSTANCE), they
have to be looked at once. A row is valid as long as its file has the same size and time of change.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import InputError
from hemolens.sources.datasets.cases import Note
from hemolens.sources.datasets.tables import quoted, write_quietly

INDEX_FILE = "hemolens-masks.csv"
FORMAT = "hemolens-masks-1"

Presence = tuple[frozenset[int], ...]
"""Labels of each slice other than 0, in the order of the volume."""


def presence_of(labels: NDArray[np.uint8]) -> Presence:
    """Return which labels each slice holds."""
    return tuple(frozenset(map(int, np.flatnonzero(np.bincount(p.ravel(), minlength=256)))) - {0} for p in labels)


def mask_presence(
    root: Path,
    masks: Sequence[Path],
    read: Callable[[Path], NDArray[np.uint8]],
    progress: Callable[[float], None],
) -> tuple[Mapping[Path, Presence], tuple[Note, ...]]:
    """Return what each mask holds, from the index where it is current.

    Parameters
    ----------
    root
        The data set's folder.
    masks
        Files in it.
    read
        Returns the labels of one file, shape ``(slices, rows, columns)``.
    progress
        Called with the fraction that is done.

    Returns
    -------
    mapping
        File to presence.
    tuple of Note
        A note, if the index could not be written.
    """
    known = _read_index(root / INDEX_FILE)
    found: dict[Path, Presence] = {}
    rows: dict[str, tuple[str, str]] = {}
    for number, path in enumerate(masks):
        name, stamp = path.relative_to(root).as_posix(), _stamp(path)
        if name in known and known[name][0] == stamp:
            rows[name] = known[name]
        else:
            progress(number / len(masks))
            rows[name] = (stamp, "|".join(" ".join(map(str, sorted(s))) for s in presence_of(read(path))))
        found[path] = tuple(frozenset(map(int, part.split())) for part in rows[name][1].split("|"))
    if rows == known or not rows:
        return found, ()
    lines = (FORMAT, *(f"{quoted(name)},{stamp},{text}" for name, (stamp, text) in sorted(rows.items())))
    if write_quietly(root / INDEX_FILE, lines):
        return found, ()
    text = f"{INDEX_FILE} cannot be written: all masks are read again each time this data set is opened"
    return found, (Note("known", text),)


def _stamp(path: Path) -> str:
    try:
        info = path.stat()
    except OSError as error:
        raise InputError(path, "cannot be read", "Download the data set again.") from error
    return f"{info.st_size}-{info.st_mtime_ns}"


def _read_index(path: Path) -> dict[str, tuple[str, str]]:
    """Return the rows of an index; an unreadable or foreign one counts as none and is written anew."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.reader(stream))
    except (OSError, csv.Error, UnicodeDecodeError):
        return {}
    if not rows or rows[0] != [FORMAT]:
        return {}
    valid = (row for row in rows[1:] if len(row) == 3 and set(row[2]) <= set("0123456789| "))
    return {name: (stamp, text) for name, stamp, text in valid}
