"""Opening data sets: which one lies in a folder is told by its layout, not by the folder's name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hemolens.errors import ConfigError, InputError
from hemolens.sources.datasets import bhsd, ct_ich, phe_sich
from hemolens.sources.datasets.cases import DataSet


@dataclass(frozen=True)
class Layout:
    """How one kind of data set is recognized and opened."""

    name: str
    looks: str
    """What must be there, for messages."""
    find: Callable[[Path], Path | None]
    """Return the data set's root for a folder, or None."""
    open: Callable[[Path], DataSet]


def _ct_ich(path: Path) -> Path | None:
    found = ct_ich.locate(path)
    return found.root if found is not None and found.patient is None else None


def _phe_sich(path: Path) -> Path | None:
    return path if (path / "slices.csv").is_file() and (path / "blood_pseudo").is_dir() else None


def _bhsd(path: Path) -> Path | None:
    images = path / "images"
    return path if (path / "masks").is_dir() and images.is_dir() and any(images.glob("*.png")) else None


LAYOUTS: tuple[Layout, ...] = (
    Layout("ct_ich", "Patients_CT/<patient>/brain/*.jpg", _ct_ich, ct_ich.open_ct_ich),
    Layout("phe_sich", "slices.csv and blood_pseudo/", _phe_sich, phe_sich.open_phe_sich),
    Layout("bhsd", "images/ and masks/", _bhsd, bhsd.open_bhsd_pictures),
)
NAMES: Mapping[str, str] = {layout.name: layout.looks for layout in LAYOUTS}


def open_datasets(path: Path, names: Sequence[str] = ()) -> tuple[DataSet, ...]:
    """Open a data set, or every data set in a folder of several.

    Parameters
    ----------
    path
        A data set's own folder, or one that holds several; what is no data set among them is skipped.
    names
        Only these; see `NAMES`.

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
        wanted = "; ".join(f"{layout.name} ({layout.looks})" for layout in LAYOUTS)
        raise InputError(path, "holds no data set that hemolens knows", f"Looked for: {wanted}.")
    absent = sorted(set(names) - set(found))
    if absent:
        raise InputError(path, f"holds no {', '.join(absent)}", f"Here are: {', '.join(sorted(found))}.")
    return tuple(layout.open(root) for name, (layout, root) in sorted(found.items()) if not names or name in names)


def _recognized(path: Path) -> dict[str, tuple[Layout, Path]]:
    single = _kind_of(path)
    if single is not None:
        return {single[0].name: single}
    found: dict[str, tuple[Layout, Path]] = {}
    for folder in sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith(".")):
        kind = _kind_of(folder)
        if kind is None:
            continue
        if kind[0].name in found:
            problem = f"holds {kind[0].name} twice: {found[kind[0].name][1].name} and {folder.name}"
            raise InputError(path, problem, "Give one of them.")
        found[kind[0].name] = kind
    return found


def _kind_of(path: Path) -> tuple[Layout, Path] | None:
    for layout in LAYOUTS:
        root = layout.find(path)
        if root is not None:
            return layout, root
    return None
