"""Decoded cases: read and cropped once by the very preprocessing that a network meets in use, then kept on disk.

Each case is one ``.npy`` file, read slice by slice from the disk, and a small ``.json`` beside it, which is written
last: a case without it was never finished. Both are named by a digest of the case, its source files (size and time of
change) and the preprocessing, so that whatever changes makes a new file; a damaged one is made again. The folder can
be shared by several runs at once and deleted when none is on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import InputError, OutputError
from hemolens.preprocessing.head import brain_inside
from hemolens.preprocessing.pipeline import (
    Prepared,
    PreprocessConfig,
    context_members,
    contexts,
    merge_slices,
    prepare,
    slice_offsets,
)
from hemolens.sources.datasets.cases import EDEMA, UNKNOWN, Case, DataSet, MaskState
from hemolens.sources.splits import group_of, slices_in
from hemolens.volume import Volume

FORMAT = 2
"""Raised when what is stored changes its meaning."""
PIXELS, FLAGS, LABELS = range(3)
"""Planes of each stored slice."""
INSIDE, SKULL = 1, 2
"""Bits of the plane of flags."""


@dataclass(frozen=True, slots=True)
class Item:
    """One slice of a store: what can be told without reading it."""

    case: int
    """Index in `Store.cases`."""
    index: int
    """Slice of its case, in the source's order."""
    position: int
    """The same in the network's order, which may run against the source's."""
    findings: tuple[float, ...]
    """1, 0 or NaN for unknown, in `hemolens.labels.FINDING_NAMES` order."""
    mask_state: MaskState
    skull_share: float
    """Share of the crop inside a skull that is told well; a slice of much less cannot be painted."""
    blood_pixels: int
    """Of the mask on the network's grid; 0 where the mask is unknown."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One slice with its neighbors and what is known of it, on the network's grid."""

    images: NDArray[np.uint8]
    """Shape ``(3, h, w)``: below, the slice, above."""
    inside: NDArray[np.bool_]
    """Where blood may be: inside the skull, or where that is not known wherever no bone is."""
    skull: NDArray[np.bool_]
    """Inside of the skull, `hemolens.preprocessing.head.brain_inside`: where bleeds are painted."""
    findings: NDArray[np.float32]
    """1, 0 or NaN for unknown, shape ``(6,)``."""
    labels: NDArray[np.uint8]
    """0, subtype 1-5, 6 blood of unknown subtype, 7 edema, 255 unknown."""
    name: str
    """``"ct_ich/049#14"``."""


@dataclass(frozen=True, eq=False)
class SampleVolume:
    """Some neighboring slices of one case, lowest first."""

    images: NDArray[np.uint8]
    """Shape ``(slices, h, w)``."""
    inside: NDArray[np.bool_]
    skull: NDArray[np.bool_]
    findings: NDArray[np.float32]
    """Shape ``(slices, 6)``."""
    labels: NDArray[np.uint8]
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Kept:
    """What the ``.json`` of a case says."""

    path: Path
    order: NDArray[np.intp]
    """Index in the case of each stored slice: the network's order may run against the source's."""
    offsets_mm: NDArray[np.float64]
    skull_shares: tuple[float, ...]
    blood_pixels: tuple[int, ...]


class Store:
    """Decoded slices on disk; only what is asked for is ever in memory.

    Parameters
    ----------
    cases, items
        Members, and every slice of theirs, case by case, in the network's order.
    preprocess
        What was done to them.
    kept
        Where they lie.
    """

    def __init__(
        self, cases: tuple[Case, ...], items: tuple[Item, ...], preprocess: PreprocessConfig, kept: tuple[_Kept, ...]
    ) -> None:
        self.cases = cases
        self.items = items
        self.preprocess = preprocess
        self._kept = kept

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, number: int) -> Sample:
        """Read slice `number` of `items` and its neighbors."""
        item = self.items[number]
        case, kept = self.cases[item.case], self._kept[item.case]
        stored = self._open(kept)
        members = context_members(kept.offsets_mm, self.preprocess.context_mm, item.position)
        images = np.stack([merge_slices(np.asarray(stored[m, PIXELS])) for m in members])
        flags, labels = np.array(stored[item.position, FLAGS]), np.array(stored[item.position, LABELS])
        return Sample(
            images,
            (flags & INSIDE) > 0,
            (flags & SKULL) > 0,
            np.array(item.findings, dtype=np.float32),
            labels,
            case.slice_id(item.index),
        )

    def length(self, case: int) -> int:
        """Return the number of slices of a case."""
        return len(self._kept[case].order)

    def volume(self, case: int, start: int = 0, stop: int | None = None) -> SampleVolume:
        """Read slices `start` to `stop` of a case, in the network's order, whether or not all are members."""
        kept, records = self._kept[case], self.cases[case].slices
        block = np.array(self._open(kept)[start:stop])
        order = kept.order[start:stop]
        return SampleVolume(
            block[:, PIXELS],
            (block[:, FLAGS] & INSIDE) > 0,
            (block[:, FLAGS] & SKULL) > 0,
            np.array([records[k].findings for k in order], dtype=np.float32).reshape(len(order), -1),
            block[:, LABELS],
            tuple(self.cases[case].slice_id(int(k)) for k in order),
        )

    def with_neighbors(self, case: int, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Show each of all slices of a case, ``(slices, h, w)``, between its neighbors, ``(slices, 3, h, w)``."""
        return contexts(images, self._kept[case].offsets_mm, self.preprocess.context_mm)

    @staticmethod
    def _open(kept: _Kept) -> NDArray[np.uint8]:
        try:
            stored: NDArray[np.uint8] = np.load(kept.path, mmap_mode="r")
        except (OSError, ValueError) as error:
            problem = "was removed or damaged while it was in use"
            raise InputError(kept.path, problem, "Start again: the cache is made anew.") from error
        return stored


def build_store(
    datasets: Sequence[DataSet],
    members: Collection[str] | None,
    preprocess: PreprocessConfig,
    folder: Path,
    *,
    unit: Literal["patient", "slice"] = "patient",
    workers: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Store:
    """Decode every case of the members that is not in `folder` yet, and open all of them.

    Parameters
    ----------
    datasets
        Opened data sets.
    members
        Groups (``"ct_ich/049"``), or with `unit` ``"slice"`` slices (``"ct_ich/049#14"``), as in a
        `hemolens.sources.splits.Fold`; None for everything.
    preprocess
        What the network sees.
    folder
        Of the cache; may be shared by runs, also at the same time.
    unit
        What `members` names.
    workers
        Processes that decode.
    progress
        Called with the share that is done.

    Raises
    ------
    InputError
        If a member is in no data set, or a file cannot be read.
    OutputError
        If `folder` cannot be written.
    """
    wanted = None if members is None else frozenset(members)
    chosen = list(_choose(datasets, wanted, unit))
    _make(folder)
    jobs = [(number, case, _key(datasets[number], case, preprocess)) for number, case, _ in chosen]
    kept: list[_Kept | None] = [_find(folder, key, case, preprocess.size) for _, case, key in jobs]
    todo = [k for k, found in enumerate(kept) if found is None]
    with _Decoder(datasets, preprocess, folder, min(workers, len(todo))) as decoder:
        for done, (k, found) in enumerate(zip(todo, decoder.decode([jobs[k] for k in todo]), strict=True), start=1):
            kept[k] = found
            if progress:
                progress(done / len(todo))
    whole = tuple(found for found in kept if found is not None)
    items = tuple(
        Item(number, int(k), place, case.slices[k].findings, case.slices[k].mask_state, share, blood)
        for number, ((_, case, indices), found) in enumerate(zip(chosen, whole, strict=True))
        for place, (k, share, blood) in enumerate(zip(found.order, found.skull_shares, found.blood_pixels, strict=True))
        if k in indices
    )
    return Store(tuple(case for _, case, _ in chosen), items, preprocess, whole)


def _choose(
    datasets: Sequence[DataSet], members: frozenset[str] | None, unit: str
) -> Iterator[tuple[int, Case, Collection[int]]]:
    """Yield the number of the data set, the case and its slices."""
    missing = set(members or ())
    for number, dataset in enumerate(datasets):
        for case in dataset.cases:
            indices = range(len(case.slices)) if members is None else frozenset(slices_in(case, members))
            missing -= {case.group} if unit == "patient" else {case.slice_id(k) for k in indices}
            if indices:
                yield number, case, indices
    if missing:
        known = ", ".join(sorted(dataset.name for dataset in datasets)) or "none"
        name = min(missing)
        raise InputError(
            name if unit == "slice" else group_of(name),
            f"is in no opened data set ({known})",
            "Use the split of these data sets, or make one with hemolens data split.",
        )


class _Decoder:
    """Decodes cases here or in other processes, which get the data sets once."""

    def __init__(self, datasets: Sequence[DataSet], preprocess: PreprocessConfig, folder: Path, workers: int) -> None:
        self.shared = (tuple(datasets), preprocess, folder)
        self.pool = ProcessPoolExecutor(workers, initializer=_share, initargs=self.shared) if workers > 1 else None

    def __enter__(self) -> _Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def decode(self, jobs: Sequence[tuple[int, Case, str]]) -> Iterator[_Kept]:
        """Yield each decoded case, in order."""
        if self.pool:
            yield from self.pool.map(_decode_shared, jobs)
        else:
            for job in jobs:
                yield _decode(*self.shared, *job)


class _Shared:
    """What each decoding process was given when it started."""

    value: tuple[tuple[DataSet, ...], PreprocessConfig, Path] | None = None


def _share(*shared: Any) -> None:
    _Shared.value = shared


def _decode_shared(job: tuple[int, Case, str]) -> _Kept:
    if _Shared.value is None:
        raise RuntimeError("a decoding process was started without its data sets")
    return _decode(*_Shared.value, *job)


@contextlib.contextmanager
def _named(case: Case) -> Iterator[None]:
    """Name the case in errors that name one of its files only."""
    try:
        yield
    except InputError as error:
        if case.patient in error.source:
            raise
        raise InputError(f"{case.id}, {error.source}", error.problem, error.remedy) from error


def _decode(
    datasets: Sequence[DataSet], preprocess: PreprocessConfig, folder: Path, number: int, case: Case, key: str
) -> _Kept:
    with _named(case):
        volume, labels = datasets[number].volume(case), datasets[number].labels(case)
        prepared = prepare(volume, preprocess)
    order = np.arange(len(volume))[:: -1 if prepared.orientation.flip_slices else 1]
    block = np.empty((len(volume), 3, preprocess.size, preprocess.size), dtype=np.uint8)
    block[:, PIXELS] = prepared.crops
    skulls = np.stack([brain_inside(image) for image in prepared.crops])
    block[:, FLAGS] = prepared.gates * np.uint8(INSIDE) + skulls * np.uint8(SKULL)
    block[:, LABELS] = labels_on_grid(labels, prepared)
    blood = (block[:, LABELS] > 0) & (block[:, LABELS] < EDEMA)
    told = {
        "order": order.tolist(),
        "offsets_mm": _offsets(volume, preprocess).tolist(),
        "skull_shares": [round(float(s), 4) for s in skulls.mean(axis=(1, 2))],
        "blood_pixels": blood.sum(axis=(1, 2)).tolist(),
    }
    _write(folder, key, block, told)
    return _kept(folder / f"{key}.npy", told)


def _offsets(volume: Volume, preprocess: PreprocessConfig) -> NDArray[np.float64]:
    """As `slice_offsets`, but slice images whose numbers leave one out are not neighbors across the gap."""
    numbers = np.array(volume.source.slice_numbers, dtype=np.float64)
    if volume.stack is None and len(numbers) == len(volume) > 1 and np.diff(numbers).min() == 1:
        return np.asarray((numbers - numbers[0]) * preprocess.context_mm, dtype=np.float64)
    return slice_offsets(volume, preprocess.context_mm)


def labels_on_grid(labels: NDArray[np.uint8], prepared: Prepared) -> NDArray[np.uint8]:
    """Bring a data set's masks onto the network's grid: each pixel is what covers more than half of it.

    Blood is decided first and then which: where two subtypes meet, the larger one of the two takes the pixel.
    """
    size = prepared.crops.shape[-1]
    turned = np.asarray(prepared.orientation.apply(labels), dtype=np.uint8)
    out = np.zeros((len(turned), size, size), dtype=np.uint8)
    for plane, source in zip(out, turned, strict=True):
        present = [int(v) for v in np.flatnonzero(np.bincount(source.ravel(), minlength=256)) if v]
        if present == [UNKNOWN] and (source == UNKNOWN).all():
            plane[:] = UNKNOWN
            continue
        shares = {v: prepared.crop.extract(source == v) for v in present}
        blood = [v for v in present if v < EDEMA]
        if EDEMA in shares:
            plane[sum(shares[v] for v in (*blood, EDEMA)) > 0.5] = EDEMA
        if blood:
            stacked = np.stack([shares[v] for v in blood])
            where = stacked.sum(axis=0) > 0.5
            plane[where] = np.array(blood, dtype=np.uint8)[stacked.argmax(axis=0)][where]
        if UNKNOWN in shares:
            plane[shares[UNKNOWN] > 0.5] = UNKNOWN
    return out


def _key(dataset: DataSet, case: Case, preprocess: PreprocessConfig) -> str:
    """Return the name of a case's files: changes with whatever they are made of."""
    told = {
        "format": FORMAT,
        "case": case.id,
        "slices": [(record.name, record.mask_state) for record in case.slices],
        "findings": [[str(v) for v in record.findings] for record in case.slices],
        "files": [_state(path, dataset.root) for path in dataset.files(case)],
        "preprocess": (preprocess.size, preprocess.context_mm, preprocess.crop, preprocess.gate),
    }
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    return f"{case.dataset}-{digest[:24]}"


def _state(path: Path, root: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(path, "cannot be read", "Check the data set with hemolens data check.") from error
    name = path.relative_to(root) if path.is_relative_to(root) else path
    return str(name), stat.st_size, stat.st_mtime_ns


def _kept(path: Path, told: dict[str, Any]) -> _Kept:
    return _Kept(
        path,
        np.array(told["order"], dtype=np.intp),
        np.array(told["offsets_mm"], dtype=np.float64),
        tuple(told["skull_shares"]),
        tuple(told["blood_pixels"]),
    )


def _find(folder: Path, key: str, case: Case, size: int) -> _Kept | None:
    """Open a case that was decoded before; None where it is not there or not as it was written."""
    path = folder / f"{key}.npy"
    try:
        told = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        stored = np.load(path, mmap_mode="r")
        if stored.shape != (len(case.slices), 3, size, size) or stored.dtype != np.uint8:
            return None
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (told["bytes"], told["mtime_ns"]) and _sum(stored) != told["crc32"]:
            return None
        return _kept(path, told)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is decoded again


def _sum(block: NDArray[np.uint8]) -> int:
    total = 0
    for plane in block:
        total = zlib.crc32(np.ascontiguousarray(plane).tobytes(), total)
    return total


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: the cache cannot be made ({error.strerror}). Name another with --cache."
        ) from error


def _write(folder: Path, key: str, block: NDArray[np.uint8], told: dict[str, Any]) -> None:
    """Write both files whole or not at all; who comes last wins, with the same content."""
    path = folder / f"{key}.npy"
    try:
        with _replacing(path) as file:
            np.save(file, block)
        stat = path.stat()
        full = {**told, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "crc32": _sum(block)}
        with _replacing(folder / f"{key}.json") as file:
            file.write(json.dumps(full).encode())
    except OSError as error:
        problem = f"{folder}: the cache cannot be written ({error.strerror})"
        raise OutputError(f"{problem}. Free some space there, or name another folder with --cache.") from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` once it is written whole."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".part", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    Path(file.name).replace(path)
