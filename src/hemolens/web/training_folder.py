"""A growing folder of corrected scans that `hemolens train` reads as the data set kind ``folder``.

::

    <folder>/images/<scan>.nii.gz, masks/<scan>.nii.gz      Hounsfield units and labels on the grid of the scan
    <folder>/images/<scan>/000.png, masks/<scan>/000.png    scans without one affine or without geometry: pictures
    <folder>/labels.csv                                     what each scan holds, and which are of one patient
    <folder>/corrections.jsonl                              who added what, when, from which model's result

No patient name or number goes into it: a scan is called after its pixels, a patient by a keyed hash whose key stays in
``.hemolens-key``. Everything is on disk before ``labels.csv`` names it, and adding a scan again replaces it.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hemolens.errors import GeometryError, InputError, OutputError
from hemolens.labels import FINDING_NAMES, SUBTYPES
from hemolens.preprocessing.pipeline import Orientation
from hemolens.preprocessing.window import to_gray
from hemolens.reports.nifti import mask_files, scan_file
from hemolens.sources.datasets.cases import UNKNOWN_SUBTYPE
from hemolens.sources.datasets.folder import TABLE, WINDOW
from hemolens.sources.dicom.origin import read_header
from hemolens.sources.dicom.tags import quiet
from hemolens.volume import LabelMap, Volume
from hemolens.web.saving import Correction

KEY_FILE = ".hemolens-key"
LOCK_FILE = ".hemolens-lock"
LOG_FILE = "corrections.jsonl"
LOCK_WAIT_S = 20.0
LOCK_STALE_S = 120.0
"""A lock this old was left by a process that died."""
COLUMNS = ("file", "patient", *FINDING_NAMES)

Row = Mapping[str, str]


@dataclass(frozen=True)
class Added:
    """What was added to a training folder."""

    scan: str
    """Its name there."""
    replaced: bool
    """Whether an earlier correction of the same scan was there."""
    scans: int
    """In the folder now."""
    patients: int


def add_to_training(folder: Path, correction: Correction) -> Added:
    """Add a corrected scan; an earlier correction of it is replaced.

    Parameters
    ----------
    folder
        Of the data set; made if it is not there.
    correction
        Every slice of it counts as looked at: what is not outlined is taught as free of blood. Without
        `Correction.subtypes_checked` its blood is of unknown subtype.

    Raises
    ------
    OutputError
        If the folder cannot be written, or another process holds it too long.
    """
    volume = correction.label_map.volume
    try:
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            scan = scan_name(volume)
            replaced = _put(folder, scan, correction)
            _log(folder, scan, correction)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"{folder}: cannot be written ({reason}). Name another folder.") from error
    scans, patients = count(folder)
    return Added(scan, replaced, scans, patients)


def _put(folder: Path, scan: str, correction: Correction) -> bool:
    """Write image and mask, then the table that names them; return whether the scan was there before."""
    rows = _read_rows(folder)
    earlier = [file for file in rows if _scan_of(file) == scan]
    files = _files(correction, scan)
    for name, content in files.items():
        _write(folder / name, content)
    for file in earlier:
        del rows[file]
    patient = _patient(correction.label_map.volume, folder, scan)
    for file in (name.removeprefix("images/") for name in files if name.startswith("images/")):
        rows[file] = _row(file, patient, _shown(correction, file), checked=correction.subtypes_checked)
    _write(folder / TABLE, _table(rows))
    return bool(earlier)


def count(folder: Path) -> tuple[int, int]:
    """Return how many scans of how many patients the folder holds."""
    rows = _read_rows(folder)
    return len({_scan_of(file) for file in rows}), len({row.get("patient", "") for row in rows.values()})


def scan_name(volume: Volume) -> str:
    """Return what a scan is called: a digest of its pixels, so that nothing personal is in it."""
    digest = hashlib.sha256(str(volume.shape).encode())
    for plane in volume.hu:
        digest.update(np.ascontiguousarray(plane, dtype=np.float32).tobytes())
    return f"scan-{digest.hexdigest()[:12]}"


def _files(correction: Correction, scan: str) -> dict[str, bytes]:
    """Return image and mask: one NIfTI each, or pictures of each slice."""
    volume, taught = correction.label_map.volume, _taught(correction)
    if volume.source.kind != "images" and volume.stack is not None:
        try:
            image = scan_file(volume)
            mask = mask_files(LabelMap(taught, volume))["mask.nii.gz"]
        except GeometryError:
            pass  # uneven or turning slices have no place in a NIfTI: pictures, below
        else:
            return {f"images/{scan}.nii.gz": image, f"masks/{scan}.nii.gz": mask}
    # Pictures say nothing of how they lie: they are read as slices from the lowest to the highest, face up.
    turn = Orientation.of(volume.stack)
    gray = turn.apply(to_gray(volume.hu, WINDOW))
    files = {f"images/{scan}/{k:03d}.png": _png(plane) for k, plane in enumerate(gray)}
    return files | {f"masks/{scan}/{k:03d}.png": _png(plane) for k, plane in enumerate(turn.apply(taught))}


def _taught(correction: Correction) -> NDArray[np.uint8]:
    """Return the labels to train on: subtypes only where a person vouches for them."""
    labels = correction.label_map.labels
    if correction.subtypes_checked:
        return labels
    return np.where(labels > 0, UNKNOWN_SUBTYPE, 0).astype(np.uint8)


def _shown(correction: Correction, file: str) -> NDArray[np.generic]:
    """Return the labels that a file is about: a picture is one slice, a NIfTI the whole scan."""
    taught = _taught(correction)
    if "/" not in file:
        return taught
    turned = Orientation.of(correction.label_map.volume.stack).apply(taught)
    return np.asarray(turned[int(Path(file).stem)])


def _row(file: str, patient: str, labels: NDArray[np.generic], *, checked: bool) -> Row:
    """Return what the table says of a file."""
    there = set(np.unique(labels).tolist()) - {0}
    findings = {s.name: str(int(s.index in there)) if checked or not there else "" for s in SUBTYPES}
    return {"file": file, "patient": patient, "any": str(int(bool(there))), **findings}


def _scan_of(file: str) -> str:
    return file.split("/")[0].split(".")[0]


def _patient(volume: Volume, folder: Path, scan: str) -> str:
    """Return a name for the patient that tells nothing but which scans are of the same one."""
    origin = volume.source.origin
    if origin is None or not origin.header:
        return scan
    with quiet():
        header = read_header(origin)
        told = f"{header.get('PatientID', '')}\0{header.get('IssuerOfPatientID', '')}"
    if not told.strip("\0 "):
        return scan
    return f"patient-{hmac.new(_key(folder), told.encode(), hashlib.sha256).hexdigest()[:12]}"


def _key(folder: Path) -> bytes:
    path = folder / KEY_FILE
    if not path.exists():
        _write(path, secrets.token_hex(32).encode())
        path.chmod(0o600)
    return path.read_bytes()


def _read_rows(folder: Path) -> dict[str, Row]:
    path = folder / TABLE
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise InputError(path, "cannot be read", "Mend it, or name another folder.") from error
    if any(not row.get("file") for row in rows):
        raise InputError(path, "has no column 'file'", "Mend it, or name another folder.")
    return {row["file"]: row for row in rows}


def _table(rows: Mapping[str, Row]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    writer.writerows(rows[file] for file in sorted(rows))
    return stream.getvalue().encode()


def _log(folder: Path, scan: str, correction: Correction) -> None:
    told = correction.record()
    told["input"] = {"scan": scan, "kind": told["input"]["kind"]}  # paths and UIDs stay out of a folder that is shared
    with (folder / LOG_FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(told, ensure_ascii=False, allow_nan=False) + "\n")


def _write(path: Path, content: bytes) -> None:
    """Put a file in its place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _png(pixels: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for the time of the block: several readers may add scans at once."""
    lock, began = folder / LOCK_FILE, time.monotonic()
    while True:
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            break
        except FileExistsError:
            if _is_stale(lock):
                lock.unlink(missing_ok=True)
            elif time.monotonic() - began > LOCK_WAIT_S:
                raise OutputError(
                    f"{folder}: is being written by somebody else. Try again in a moment; if nobody is, delete {lock}."
                ) from None
            else:
                time.sleep(0.05)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _is_stale(lock: Path) -> bool:
    try:
        return time.time() - lock.stat().st_mtime > LOCK_STALE_S
    except OSError:
        return False
