"""Opening a saved correction again, to go on with it: what `hemolens.web.saving` wrote, or any mask of the scan."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import InputError
from hemolens.volume import Volume
from hemolens.web.compare import truth_from_upload
from hemolens.web.saving import RECORD

MOST_BYTES = 2**30
"""Of what a zip holds when it is unpacked."""


def read_saved(volume: Volume, name: str, content: bytes) -> tuple[NDArray[np.uint8], str]:
    """Read the mask of a saved correction.

    Parameters
    ----------
    volume
        The scan that it must belong to.
    name, content
        The zip that was downloaded, or its ``mask.nii.gz`` alone.

    Returns
    -------
    tuple
        Labels in the shape of the volume, and where they come from, for people.

    Raises
    ------
    InputError
        If it is no mask of this scan.
    """
    if not name.lower().endswith(".zip"):
        labels, _ = truth_from_upload(volume, {name: content})
        return labels, f"the mask {name}"
    files = _unzipped(name, content)
    record = _record(name, files.pop(RECORD, b"{}"))
    told = record.get("input", {}).get("path_or_uid")
    if volume.source.kind == "dicom" and told not in {None, volume.source.path_or_uid}:
        raise InputError(name, "is the correction of another series", "Open the scan that it was made on.")
    masks = {Path(path).name: data for path, data in files.items() if path.startswith("mask")}
    if not masks:
        raise InputError(name, "holds no mask", "Give the zip that the page Correct made, or its mask.nii.gz.")
    labels, _ = truth_from_upload(volume, masks)
    return labels, described(record) or f"the mask in {name}"


def described(record: Mapping[str, Any]) -> str:
    """Say whose correction a record tells of: ``the correction by Ada Reader, saved 2026-11-22``; empty if unknown."""
    author, saved = record.get("author"), str(record.get("saved", ""))
    return f"the correction by {author}, saved {saved[:10]}" if author else ""


def kept_corrections(keep: Path, volume: Volume) -> list[tuple[str, Path]]:
    """Return the corrections of a scan that the server keeps, the newest first: what each is, and its folder."""
    found = []
    for path in sorted((keep / "corrections").glob(f"*/{RECORD}"), reverse=True):
        try:
            record = _record(path.parent.name, path.read_bytes())
        except (InputError, OSError):
            continue  # half written: nothing to go on with
        if record.get("input", {}).get("path_or_uid") == volume.source.path_or_uid:
            told = f"{record.get('author', 'somebody')}, {str(record.get('saved', ''))[:16].replace('T', ' ')}"
            found.append((told, path.parent))
    return found


def read_kept(volume: Volume, folder: Path) -> tuple[NDArray[np.uint8], str]:
    """Read a correction that the server keeps; as `read_saved`.

    Raises
    ------
    InputError
        If it is no correction of this scan.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    return read_saved(volume, f"{folder.name}.zip", buffer.getvalue())


def _unzipped(name: str, content: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [e for e in archive.infolist() if not e.is_dir()]
            if sum(e.file_size for e in entries) > MOST_BYTES:
                raise InputError(name, "is too large for a correction", "Give the zip that the page Correct made.")
            wanted = [e for e in entries if e.filename == RECORD or e.filename.startswith("mask")]
            return {e.filename: archive.read(e) for e in wanted}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, OSError) as error:
        raise InputError(name, "is no readable zip file", "Download the correction again.") from error


def _record(name: str, content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(name, f"has a {RECORD} that cannot be read", "Download the correction again.") from error
    if not isinstance(record, dict) or not isinstance(record.get("input", {}), dict):
        raise InputError(name, f"has a {RECORD} that cannot be read", "Download the correction again.")
    return record
