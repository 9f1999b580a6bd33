"""Downloading data sets from Kaggle with kagglehub, and saying where the others are.

kagglehub goes on with a broken download only inside its own cache, never in a folder of the user's. So the cache is put
inside the target folder, and what is complete is moved out of it in one step.
"""

from __future__ import annotations

import errno
import importlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemolens.errors import ConfigError, DependencyError, InputError, OutputError
from hemolens.sources.datasets.cases import DataSet
from hemolens.sources.datasets.opening import NAMES, open_datasets

CACHE = ".kaggle-download"
"""Folder inside the target for what is not complete yet."""


@dataclass(frozen=True)
class Source:
    """Where a data set is to be had."""

    handle: str
    """Kaggle's name; empty where it is not there."""
    competition: bool
    page: str
    terms: str
    needs_gb: int
    """Room for the archive and the unpacked files together, about."""
    cases: int
    """At least so many scans make a whole data set."""


SOURCES: Mapping[str, Source] = {
    "ct_ich": Source(
        "vbookshelf/computed-tomography-ct-images",
        False,
        "https://www.kaggle.com/datasets/vbookshelf/computed-tomography-ct-images",
        "CC BY 4.0",
        4,
        82,
    ),
    "rsna": Source(
        "rsna-intracranial-hemorrhage-detection",
        True,
        "https://www.kaggle.com/competitions/rsna-intracranial-hemorrhage-detection",
        "non-commercial research and education only; accept the competition's rules first",
        650,
        21_000,
    ),
    "bhsd": Source(
        "stevezeyuzhang/bhsd-dataset",
        False,
        "https://www.kaggle.com/datasets/stevezeyuzhang/bhsd-dataset",
        "research use only",
        40,
        192,
    ),
    "ct_ich_nifti": Source(
        "", False, "https://physionet.org/content/ct-ich/1.3.1/", "sign PhysioNet's restricted data agreement", 4, 75
    ),
    "cq500": Source("", False, "http://headctstudy.qure.ai/dataset", "CC BY-NC-SA 4.0", 80, 491),
    "instance": Source("", False, "https://instance.grand-challenge.org/", "sign the challenge's agreement", 2, 100),
    "phe_sich": Source("", False, "search for PHE-SICH-CT-IDS on figshare", "CC BY 4.0", 4, 119),
}
TOKEN_REMEDY = (
    "Make one: sign in at https://www.kaggle.com, open Settings, API, 'Create New Token', and either set the variable "
    "KAGGLE_API_TOKEN to it, or save it as ~/.kaggle/access_token; KAGGLE_USERNAME with KAGGLE_KEY and an older "
    "~/.kaggle/kaggle.json work too."
)


def load_kagglehub() -> Any:
    """Import kagglehub.

    Raises
    ------
    DependencyError
        If it is not installed.
    """
    try:
        return importlib.import_module("kagglehub")
    except ImportError as error:
        raise DependencyError("kagglehub", "data") from error


def source_of(name: str) -> Source:
    """Return where a data set is on Kaggle.

    Raises
    ------
    ConfigError
        If the name is unknown, or the data set must be fetched by hand; the message says where.
    """
    on_kaggle = [known for known, source in SOURCES.items() if source.handle]
    if name not in SOURCES:
        what = "is your own" if name == "folder" else "is not known"
        raise ConfigError(f"Data set {name!r} {what}; these can be fetched: {', '.join(on_kaggle)}.")
    source = SOURCES[name]
    if not source.handle:
        raise ConfigError(
            f"{name} is not on Kaggle: get it from {source.page} ({source.terms}) and unpack it as {NAMES[name]}."
        )
    return source


def fetch(name: str, folder: Path, kagglehub: Any, *, force: bool = False) -> DataSet:
    """Download a data set to ``folder/name``, go on where an earlier try broke off, and check that it is whole.

    Parameters
    ----------
    name
        One that `source_of` knows.
    folder
        Where data sets lie. kagglehub's cache must be ``folder/.kaggle-download`` (`KAGGLEHUB_CACHE`).
    kagglehub
        The module, from `load_kagglehub`.
    force
        Download again what is already there; the old files are kept until the new ones are complete.

    Returns
    -------
    DataSet
        Opened.

    Raises
    ------
    ConfigError
        As `source_of`.
    InputError
        If there is no token, it is refused, the rules were not accepted, the network fails, or files are missing.
    OutputError
        If there is no room.
    """
    source, target, cache = source_of(name), folder / name, folder / CACHE
    if target.exists() and not force:
        return _verified(name, target, source)
    _require_token(kagglehub)
    _require_room(folder, source)
    got = _download(source, kagglehub, force=force)
    if not got.resolve().is_relative_to(cache.resolve()):
        raise OutputError(f"{got}: kagglehub wrote outside {cache}; set KAGGLEHUB_CACHE to that folder.")
    dataset = _verified(name, got, source)
    old = target.with_name(f".{name}.old")
    if target.exists():
        target.rename(old)
    got.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(cache, ignore_errors=True)
    return dataset if dataset.root == target else open_datasets(target, [name])[0]


def _require_token(kagglehub: Any) -> None:
    config = importlib.import_module(f"{kagglehub.__name__}.config")
    try:
        found = config.get_kaggle_credentials()
    except (ValueError, OSError) as error:
        raise InputError("Kaggle", f"the access token cannot be read ({type(error).__name__})", TOKEN_REMEDY) from error
    if not found:
        raise InputError("Kaggle", "no access token was found", TOKEN_REMEDY)


def _require_room(folder: Path, source: Source) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        raise OutputError(f"{folder}: cannot be used ({error.strerror}).") from error
    begun = sum(path.stat().st_size for path in (folder / CACHE).rglob("*") if path.is_file()) / 1e9
    if free + begun < source.needs_gb:
        raise OutputError(
            f"{folder}: {free:.0f} GB are free, about {source.needs_gb} GB are needed. Choose another disk."
        )


def _download(source: Source, kagglehub: Any, *, force: bool) -> Path:
    call = kagglehub.competition_download if source.competition else kagglehub.dataset_download
    try:
        return Path(call(source.handle, force_download=force))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError("The disk is full. Make room and run the same command again: it goes on.") from error
        raise _explained(source, error) from error
    except Exception as error:  # kagglehub raises a dozen kinds of its own, all straight from Exception
        raise _explained(source, error) from error


def _explained(source: Source, error: Exception) -> InputError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if type(error).__name__ == "UnauthenticatedError" or status == 401:
        return InputError("Kaggle", "the access token was refused", TOKEN_REMEDY)
    if status == 403:
        return InputError(source.handle, "Kaggle refuses access", f"Sign in and accept the terms at {source.page}.")
    if status == 404:
        return InputError(source.handle, "is not on Kaggle any more", f"Look at {source.page}.")
    again = "Run the same command again: it goes on where it broke off."
    if type(error).__name__ == "DataCorruptionError":
        return InputError(source.handle, "was damaged on the way (checksum)", again)
    return InputError(source.handle, f"the download broke off ({type(error).__name__})", again)


def _verified(name: str, root: Path, source: Source) -> DataSet:
    """Open a download, and refuse one with less than was published."""
    (dataset,) = open_datasets(root, [name])
    if len(dataset.cases) < source.cases:
        problem = f"is not whole: {len(dataset.cases):,} scans, at least {source.cases:,} were published"
        raise InputError(root, problem, "Fetch it again with --force.")
    return dataset
