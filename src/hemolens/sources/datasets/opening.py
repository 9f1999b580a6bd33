"""Opening data sets: which one lies in a folder is told by its layout, not by the folder's name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hemolens.errors import ConfigError, InputError
from hemolens.sources.datasets import bhsd, cq500, ct_ich, folder, nifti_pairs, phe_sich, rsna
from hemolens.sources.datasets.cases import DataSet

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Layout:
    """How one form of a data set is recognized and opened."""

    name: str
    looks: str
    """What must be there, for messages."""
    find: Callable[[Path], Path | None]
    """Return the data set's root for a folder, or None."""
    open: Callable[[Path, Progress], DataSet]


def _ct_ich(path: Path) -> Path | None:
    found = ct_ich.locate(path)
    return found.root if found is not None and found.patient is None else None


def _phe_sich(path: Path) -> Path | None:
    return path if (path / "slices.csv").is_file() and (path / "blood_pseudo").is_dir() else None


def _bhsd_pictures(path: Path) -> Path | None:
    """BHSD's pictures: all names are digits, masks are in color; any other images/ and masks/ are a plain folder."""
    if folder.find_folder(path) is None:
        return None
    names = sorted(item.name for item in (path / "images").iterdir() if not item.name.startswith("."))
    if not names or not all(re.fullmatch(r"\d{4,}\.png", name) for name in names):
        return None
    try:
        with Image.open(path / "masks" / names[0]) as mask:
            return path if mask.mode in ("RGB", "RGBA") else None
    except OSError:
        return None


LAYOUTS: tuple[Layout, ...] = (
    Layout("ct_ich", "Patients_CT/<patient>/brain/*.jpg", _ct_ich, lambda root, _: ct_ich.open_ct_ich(root)),
    Layout(
        "ct_ich_nifti",
        "ct_scans/*.nii and masks/*.nii",
        nifti_pairs.find_ct_ich_nifti,
        nifti_pairs.open_ct_ich_nifti,
    ),
    Layout("phe_sich", "slices.csv and blood_pseudo/", _phe_sich, lambda root, _: phe_sich.open_phe_sich(root)),
    Layout("rsna", "stage_2_train.csv and stage_2_train/*.dcm", rsna.find_rsna, rsna.open_rsna),
    Layout("cq500", "reads.csv and CQ500CT*/", cq500.find_cq500, cq500.open_cq500),
    Layout(
        "bhsd",
        "images/*.nii.gz and 'ground truths'/*.nii.gz, or imagesTr/ and labelsTr/",
        nifti_pairs.find_bhsd,
        nifti_pairs.open_bhsd,
    ),
    Layout(
        "bhsd",
        "images/<digits>.png and color masks/<digits>.png",
        _bhsd_pictures,
        lambda root, _: bhsd.open_bhsd_pictures(root),
    ),
    Layout("instance", "data/*.nii.gz and label/*.nii.gz", nifti_pairs.find_instance, nifti_pairs.open_instance),
    Layout("folder", "images/ and masks/", folder.find_folder, folder.open_folder),
)
"""In the order in which they are tried."""
NAMES: Mapping[str, str] = {
    name: " or ".join(layout.looks for layout in LAYOUTS if layout.name == name)
    for name in sorted({layout.name for layout in LAYOUTS})
}
"""Every data set and what it looks like."""


def open_datasets(
    path: Path, names: Sequence[str] = (), progress: Callable[[str, float], None] | None = None
) -> tuple[DataSet, ...]:
    """Open a data set, or every data set in a folder of several.

    Parameters
    ----------
    path
        A data set's own folder, or one that holds several; what is no data set among them is skipped.
    names
        Only these; see `NAMES`.
    progress
        Called with the name of a data set and the fraction of its headers or masks that was read; the first opening of
        RSNA 2019 takes long, later ones do not.

    Returns
    -------
    tuple of DataSet
        Sorted by name.

    Raises
    ------
    ConfigError
        If a name is unknown.
    InputError
        If there is no data set, one that was named is not there, or two are the same.
    """
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"No data set is called {name!r}.{hint} Known: {', '.join(sorted(NAMES))}.")
    if not path.is_dir():
        raise InputError(path, "is no folder", "Give the folder of a data set, or one that holds several.")
    found = _recognized(path)
    if not found:
        wanted = "; ".join(f"{name} ({looks})" for name, looks in NAMES.items())
        raise InputError(path, "holds no data set that hemolens knows", f"Looked for: {wanted}.")
    absent = sorted(set(names) - set(found))
    if absent:
        raise InputError(path, f"holds no {', '.join(absent)}", f"Here are: {', '.join(sorted(found))}.")
    opened = []
    for name, (layout, root) in sorted(found.items()):
        if not names or name in names:
            dataset = layout.open(root, _told(progress, name))
            if not dataset.cases:
                raise InputError(root, f"is laid out as {name} but holds no scan", f"Looked for: {layout.looks}.")
            opened.append(dataset)
    return tuple(opened)


def _told(progress: Callable[[str, float], None] | None, name: str) -> Progress:
    return (lambda _fraction: None) if progress is None else (lambda fraction: progress(name, fraction))


def _recognized(path: Path) -> dict[str, tuple[Layout, Path]]:
    single = _kind_of(path)
    if single is not None:
        return {single[0].name: single}
    found: dict[str, tuple[Layout, Path]] = {}
    for inner in sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith(".")):
        kind = _kind_of(inner)
        if kind is None:
            continue
        if kind[0].name in found:
            problem = f"holds {kind[0].name} twice: {found[kind[0].name][1].name} and {inner.name}"
            raise InputError(path, problem, "Give one of them.")
        found[kind[0].name] = kind
    return found


def _kind_of(path: Path) -> tuple[Layout, Path] | None:
    for layout in LAYOUTS:
        root = layout.find(path)
        if root is not None:
            return layout, root
    return None
