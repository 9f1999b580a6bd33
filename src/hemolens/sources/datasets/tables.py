"""CSV tables of data sets: read whole, with one clear line where one is missing or lacks a column."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from hemolens.errors import InputError
from hemolens.sources.files import file_entry, listing


def read_table(path: Path, columns: Sequence[str], remedy: str) -> list[dict[str, str]]:
    """Read a CSV table with a header; a byte-order mark is skipped, blanks around names and values too.

    Parameters
    ----------
    path
        The file.
    columns
        Those that must be there; others are kept too.
    remedy
        What to do if it is unusable, a full sentence.

    Raises
    ------
    InputError
        If the file is missing, is no table, is empty or lacks a column.
    """
    entry = file_entry(path)
    try:
        with entry.path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [name.strip() for name in next(reader, [])]
            absent = [name for name in columns if name not in header]
            if absent:
                raise InputError(path, f"has no column {listing(absent, most=10)}", remedy)
            rows = [dict(zip(header, map(str.strip, row), strict=False)) for row in reader if any(row)]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(path, "is no CSV table", remedy) from error
    if not rows:
        raise InputError(path, "has no rows", remedy)
    short = next((n for n, row in enumerate(rows, 2) if any(name not in row for name in columns)), None)
    if short is not None:
        raise InputError(path, f"line {short} is cut short", remedy)
    return rows


def quoted(text: str) -> str:
    """Return a value as CSV holds it."""
    return '"' + text.replace('"', '""') + '"'


def write_quietly(path: Path, lines: Iterable[str]) -> bool:
    """Write a file whole or not at all; return False where that is not allowed (a data set on read-only storage)."""
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with whole.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for line in lines)
        whole.replace(path)
    except OSError:
        with suppress(OSError):  # where nothing could be written there may be nothing to remove either
            whole.unlink()
        return False
    return True
