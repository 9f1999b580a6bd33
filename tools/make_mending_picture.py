"""Draw docs/explanation/mending.png: PHE-SICH slices whose derived masks the model that ships completes.

python tools/make_mending_picture.py ../shared/data
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hemolens.inference.predictor import Predictor
from hemolens.inference.registry import load_model
from hemolens.sources.datasets.cases import UNKNOWN, UNKNOWN_SUBTYPE, DataSet
from hemolens.sources.datasets.opening import open_datasets
from hemolens.training.mending import mend
from hemolens.training.self_training import SelfTrainingConfig
from hemolens.training.store import labels_on_grid

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "mending.png"
SHOWN = ("0069_19", "0060_15", "0132_15", "0011_15")
"""Blood in a ventricle, a pale half, a slice of unknown mask, one on which nothing was marked."""
KNOWN_RGB, ADDED_RGB, DOUBT_RGB = (60, 220, 90), (255, 70, 60), (250, 210, 60)
ENLARGED = 2


def main() -> None:
    """Mend the scans, draw, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder that holds phe_sich")
    (dataset,) = open_datasets(parser.parse_args().data, ("phe_sich",))
    predictor = Predictor(load_model())
    columns = [column(predictor, dataset, name) for name in SHOWN]
    Image.fromarray(np.concatenate(columns, axis=1)).quantize(128).save(PICTURE, optimize=True)


def column(predictor: Predictor, dataset: DataSet, name: str) -> NDArray[np.uint8]:
    """Return a slice as it is above the same slice with its masks."""
    (case,) = [case for case in dataset.cases if case.patient == name.partition("_")[0]]
    index = [Path(record.name).stem for record in case.slices].index(name)
    before = dataset.labels(case)
    mended = mend(predictor, dataset, case, SelfTrainingConfig(mend=True))
    after = before.copy()
    after[index] = mended.planes[mended.names.index(case.slices[index].name)]
    prepared = predictor.prepare(dataset.volume(case))
    place = int(prepared.restore_slices(np.arange(len(before)))[index])
    old, new = (labels_on_grid(labels, prepared)[place] for labels in (before, after))
    gray = np.repeat(prepared.crops[place].repeat(ENLARGED, 0).repeat(ENLARGED, 1)[..., None], 3, axis=2)
    drawn = gray.copy()
    known = old == UNKNOWN_SUBTYPE
    for mask, color in (
        ((new == UNKNOWN), DOUBT_RGB),
        ((new == UNKNOWN_SUBTYPE) & ~known, ADDED_RGB),
        (known, KNOWN_RGB),
    ):
        wide = mask.repeat(ENLARGED, 0).repeat(ENLARGED, 1)
        drawn[wide & ~ndimage.binary_erosion(wide)] = color
    return np.concatenate([gray, drawn])


if __name__ == "__main__":
    main()
