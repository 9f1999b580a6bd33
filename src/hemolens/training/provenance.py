"""Where weights come from: code, versions, kind of machine, data and split; never a path, a host or a person."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from hemolens import __version__
from hemolens.sources.datasets.cases import DataSet, fingerprint
from hemolens.sources.datasets.pseudo import PseudoMasked
from hemolens.sources.splits import LEAK_WARNING, Fold, Split

PACKAGES = ("torch", "numpy", "scipy", "lightning-fabric", "monai", "onnx", "onnxruntime")


def session() -> dict[str, Any]:
    """Return when, with which code and on what kind of machine this process runs."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "hemolens_version": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def commit() -> str | None:
    """Return the commit of the working tree that this package runs from, ``+changes`` where its files differ.

    None where it was installed as a package.
    """
    here = Path(__file__).resolve().parent
    if _git(here, "rev-parse", "--show-prefix") != "src/hemolens/training/":
        return None
    head = _git(here, "rev-parse", "HEAD")
    return head and head + ("+changes" if _git(here.parent, "status", "--porcelain", ".") else "")


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def data_told(datasets: Sequence[DataSet], split: Split, number: int) -> dict[str, Any]:
    """Return the data sets and the fold, by names and counts; patients are named in the split file only."""
    fold = split.fold(number)
    told: dict[str, Any] = {
        "datasets": [
            {
                "name": d.name,
                "license": d.license,
                "trainable": d.trainable,
                "patients": len({case.patient for case in d.cases}),
                "slices": sum(len(case.slices) for case in d.cases),
                "fingerprint": fingerprint(d),
                **({"pseudo_masks": dict(d.folder.origin)} if isinstance(d, PseudoMasked) else {}),
            }
            for d in datasets
        ],
        "split": {
            "unit": split.unit,
            "seed": split.seed,
            "folds": len(split.folds),
            "fold": number,
            **{side: len(getattr(fold, side)) for side in ("train", "validation", "test")},
            "members_sha256": identity(datasets, fold),
        },
    }
    if split.leaks:
        told["warning"] = LEAK_WARNING
    return told


def identity(datasets: Sequence[DataSet], fold: Fold) -> str:
    """Return a digest of what a run learns from and is watched on; a checkpoint of another is refused."""
    digest = hashlib.sha256()
    used = {member.partition("/")[0] for member in (*fold.train, *fold.validation)}
    for dataset in sorted((d for d in datasets if d.name in used), key=lambda d: d.name):
        digest.update(f"{dataset.name} {fingerprint(dataset)}\n".encode())
    for side in (fold.train, fold.validation):
        digest.update(("\n".join(sorted(side)) + "\n\n").encode())
    return digest.hexdigest()
