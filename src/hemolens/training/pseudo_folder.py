"""The folder of derived masks that `hemolens data pseudo` writes and `hemolens train --pseudo` reads."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hemolens.config import to_mapping
from hemolens.errors import OutputError
from hemolens.inference.predictor import Predictor
from hemolens.sources.datasets.cases import Case, DataSet
from hemolens.sources.datasets.pseudo import FORMAT, INDEX, file_name
from hemolens.training.checkpoint import write_whole
from hemolens.training.mending import mend
from hemolens.training.self_training import Derived, SelfTrainingConfig, derive


def write_pseudo(
    predictor: Predictor,
    datasets: Sequence[DataSet],
    members: Collection[str],
    out: Path,
    config: SelfTrainingConfig,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Derive masks for the given patients and write the folder that `hemolens train --pseudo` reads.

    Parameters
    ----------
    members
        ``dataset/patient``: the training side of a split.

    Returns
    -------
    dict
        The index: which slices got a mask, and by which model.

    Raises
    ------
    OutputError
        If `out` holds anything, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: is there already and not empty. Name a new folder.")
    out.mkdir(parents=True, exist_ok=True)
    chosen = [(d, case) for d in datasets for case in d.cases if case.group in members]
    entries: dict[str, Any] = {}
    wanted: Counter[str] = Counter()
    made: Counter[str] = Counter()
    for number, (dataset, case) in enumerate(chosen, 1):
        bleeding = sum(r.mask_state == "unknown" and r.findings[0] == 1.0 for r in case.slices)
        wanted[dataset.name] += bleeding
        mended = config.mend and any(r.mask_state == "pseudo" for r in case.slices)
        if mended or bleeding:
            derived = (mend if mended else derive)(predictor, dataset, case, config)
            if derived.names:
                entries[case.id] = _written(derived, case, out)
                made["mended" if mended else "outlined"] += len(derived.names)
        if progress is not None:
            progress(number, len(chosen))
    index = {
        "format": FORMAT,
        "origin": {
            "model": predictor.model.name,
            "sha256": predictor.model.sha256,
            "settings": to_mapping(config),
            "bleeding_slices_without_mask": dict(wanted),
            "slices_outlined": made["outlined"],
            **({"slices_mended": made["mended"]} if config.mend else {}),
        },
        "cases": entries,
    }
    write_whole(out / INDEX, json.dumps(index, indent=1).encode())  # last: a folder that has it is whole
    return index


def _written(derived: Derived, case: Case, out: Path) -> dict[str, Any]:
    """Write the masks of a case, and return its entry in the index."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, labels=derived.planes)
    write_whole(out / file_name(case), buffer.getvalue())
    entry = {"file": file_name(case), "slices": list(derived.names)}
    if derived.findings is None:
        return entry
    return {**entry, "findings": [[None if math.isnan(v) else v for v in row] for row in derived.findings]}
