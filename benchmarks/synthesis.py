"""How painted bleeds differ from real ones: brightness, texture, edge, size, shape and place, kind by kind.

    python benchmarks/synthesis.py ../shared/data --split configs/splits/ich-effunet2d-3.json

Real: the drawn masks of BHSD and CT-ICH, and the pseudo-masks of PHE-SICH. Painted: as in training, but one bleed at a
time and nothing else, into bleed-free slices of the training patients of CT-ICH. All on the network's grid, in gray
values (0.47 HU at the network's window) and in millimeters of a head crop of typical width. BHSD was looked at
when painted bleeds were mended; no number was fitted to it. Writes benchmarks/results/synthesis.json and fills in the
page:
      python benchmarks/synthesis.py --page
does that alone.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from hemolens.labels import SUBTYPE_NAMES
from hemolens.preprocessing.head import skull_inside
from hemolens.preprocessing.pipeline import PreprocessConfig, prepare
from hemolens.sources.datasets.cases import UNKNOWN_SUBTYPE, DataSet
from hemolens.sources.datasets.opening import open_datasets
from hemolens.sources.splits import read_split
from hemolens.training.store import labels_on_grid
from hemolens.training.synthesis import SMALLEST_INSIDE, SynthesisConfig, paint
from hemolens.training.synthesis_shapes import BONE_GRAY, CROP_MM, TABLE_GRAY, Scene

RESULTS = Path(__file__).parent / "results" / "synthesis.json"
PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "synthesis.md"
BEGIN, END = "<!-- compared: begin (python benchmarks/synthesis.py --page) -->", "<!-- compared: end -->"
GRID = PreprocessConfig(size=224)
PAINTED_OF_EACH = 100
SMALLEST_MM2 = 10.0
INTRAPARENCHYMAL = SUBTYPE_NAMES.index("intraparenchymal") + 1
COLUMNS = {
    "brightness": "brightness",
    "unevenness": "unevenness",
    "noise": "noise",
    "edge": "step at the edge",
    "area_mm2": "area in mm²",
    "elongation": "length / width",
    "solidity": "filled share of the convex hull",
    "depth_mm": "mm from the bone",
}
Gray = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--split", type=Path)
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args()
    if not asked.page:
        if asked.data is None or asked.split is None:
            parser.error("needs DATA and --split")
        train = frozenset(read_split(asked.split).fold(0).train)
        datasets = open_datasets(asked.data, ("ct_ich", "phe_sich", "bhsd"))
        groups: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
        patients: dict[tuple[str, int], set[str]] = defaultdict(set)
        for source, subtype, patient, values in (*real(datasets), *painted(datasets, train)):
            groups[source, subtype].append(values)
            patients[source, subtype].add(patient)
        rows = [
            {
                "kind": SUBTYPE_NAMES[subtype - 1],
                "source": source,
                "n": len(found),
                "patients": len(patients[source, subtype]),
                **{name: quartiles([values[name] for values in found]) for name in COLUMNS},
            }
            for (source, subtype), found in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0]))
        ]
        RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text("utf-8"), json.loads(RESULTS.read_text("utf-8"))), encoding="utf-8")
    print(table(json.loads(RESULTS.read_text("utf-8"))))


def real(datasets: Sequence[DataSet]) -> Iterator[tuple[str, int, str, dict[str, float]]]:
    """Yield what is measured on each slice and subtype with a mask."""
    for dataset in datasets:
        for case in dataset.cases:
            if not any(record.mask_state in ("drawn", "pseudo") for record in case.slices):
                continue
            prepared = prepare(dataset.volume(case), GRID)
            labels = labels_on_grid(dataset.labels(case), prepared)
            order = np.arange(len(labels))[:: -1 if prepared.orientation.flip_slices else 1]
            for crop, truth, member in zip(prepared.crops, labels, order, strict=True):
                for value in np.unique(truth):
                    subtype = subtype_of(int(value), dataset.name, case.slices[member].findings)
                    values = measured(crop, truth == value, skull_inside(crop)) if subtype else None
                    if values:
                        yield dataset.name, subtype, case.group, values


def subtype_of(value: int, dataset: str, findings: Sequence[float]) -> int:
    """Return the subtype of a label, 1 to 5, or 0 where it is not known."""
    if 1 <= value <= len(SUBTYPE_NAMES):
        return value
    if value != UNKNOWN_SUBTYPE:
        return 0
    if dataset == "phe_sich":  # spontaneous intracerebral hemorrhage, all of it
        return INTRAPARENCHYMAL
    told = [number for number, told in enumerate(findings[1:], start=1) if told == 1]
    return told[0] if len(told) == 1 else 0


def painted(datasets: Sequence[DataSet], train: frozenset[str]) -> Iterator[tuple[str, int, str, dict[str, float]]]:
    """Yield the same of painted bleeds: `PAINTED_OF_EACH` of each kind, into slices drawn at random."""
    scans = [
        (case.group, prepare(dataset.volume(case), GRID).crops)
        for dataset in datasets
        for case in dataset.cases
        if case.group in train and dataset.name == "ct_ich" and case.findings[0] == 0
    ]
    for subtype in range(1, len(SUBTYPE_NAMES) + 1):
        weights = tuple(float(number == subtype) for number in range(1, len(SUBTYPE_NAMES) + 1))
        config = SynthesisConfig(subtype_weights=weights, second_bleed=0, hard_negative=0)  # type: ignore[arg-type]
        rng, done = np.random.default_rng(subtype), 0
        while done < PAINTED_OF_EACH:
            patient, crops = scans[int(rng.integers(len(scans)))]
            k = int(rng.integers(1, len(crops) - 1))
            skulls = np.stack([skull_inside(crop) for crop in crops[k - 1 : k + 2]])
            if skulls[1].mean() < SMALLEST_INSIDE:
                continue
            found = paint(crops[k - 1 : k + 2], skulls, config, rng)
            values = measured(found.images[1], found.labels[1] == subtype, skulls[1]) if found else None
            if values:
                done += 1
                yield "painted", subtype, patient, values


def measured(crop: Gray, lesion: Mask, skull: Mask) -> dict[str, float] | None:
    """Return all of `COLUMNS` for the blood of one kind on a slice; None where it is too small or the skull is open.

    Brightness, unevenness (standard deviation of the low-passed picture) and noise (of what the low-pass takes away)
    are taken two pixels off the edge where enough is left; the step is from the two pixels outside, as far as they are
    not in part bone, to the two inside. Elongation and solidity are those of the largest part.
    """
    pixel_mm = CROP_MM / GRID.size
    if lesion.sum() * pixel_mm**2 < SMALLEST_MM2 or skull.mean() < SMALLEST_INSIDE:
        return None
    image = crop.astype(np.float32)
    soft = image < BONE_GRAY
    brain = skull & soft & (image > 0) & ~ndimage.binary_dilation(lesion, iterations=6)
    core = ndimage.binary_erosion(lesion, iterations=2)
    core = (core if core.sum() >= 20 else lesion) & soft
    rim = ndimage.binary_dilation(lesion, iterations=2) & ~lesion & skull & (image < TABLE_GRAY)
    inner = lesion & ~ndimage.binary_erosion(lesion, iterations=2) & soft
    if min(core.sum(), rim.sum(), inner.sum()) < 5 or brain.sum() < 500:
        return None
    low = ndimage.gaussian_filter(image, 1.5)
    largest = largest_part(lesion)
    return {
        "brightness": float(np.median(image[core]) - np.median(image[brain])),
        "unevenness": float(low[core].std()),
        "noise": float((image - low)[core].std()),
        "edge": float(image[inner].mean() - image[rim].mean()),
        "area_mm2": float(lesion.sum() * pixel_mm**2),
        "elongation": elongation(largest),
        "solidity": solidity(largest),
        "depth_mm": float(np.median(Scene(image, skull).depth[lesion]) * pixel_mm),
    }


def largest_part(lesion: Mask) -> Mask:
    """Return the largest 8-connected part."""
    parts, _ = ndimage.label(lesion, np.ones((3, 3)))
    return np.asarray(parts == np.bincount(parts.ravel())[1:].argmax() + 1)


def elongation(part: Mask) -> float:
    """Return the ratio of the axes of the ellipse of the same second moments."""
    points = np.argwhere(part).astype(float)
    if len(points) < 3:
        return 1.0
    small, large = np.linalg.eigvalsh(np.cov(points.T) + np.eye(2) / 12)  # a pixel is a square, not a point
    return float(np.sqrt(large / small))


def solidity(part: Mask) -> float:
    """Return the share of the convex hull that is filled; corners of pixels, not their centers, span it."""
    points = np.argwhere(part)
    corners = np.concatenate([points + offset for offset in ((0, 0), (0, 1), (1, 0), (1, 1))])
    try:
        return float(part.sum() / ConvexHull(corners).volume)
    except QhullError:
        return 1.0


def quartiles(values: Sequence[float]) -> list[float]:
    """Return median and quartiles."""
    return [round(float(v), 3) for v in np.percentile(values, (50, 25, 75))]


def table(results: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    heads = ("kind", "from", "slices, patients", *COLUMNS.values())
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    names = {"bhsd": "BHSD", "ct_ich": "CT-ICH", "phe_sich": "PHE-SICH, pseudo-masks", "painted": "painted"}
    for row in results["rows"]:
        n = f"{row['n']}, {row['patients']}"
        cells = [row["kind"], names[row["source"]], n, *(spread(row[name]) for name in COLUMNS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Write a median with its quartiles, in as many digits as it takes."""
    digits = 0 if abs(values[0]) >= 10 else 1 if abs(values[0]) >= 1 else 2
    middle, low, high = (f"{v:.{digits}f}" for v in values)
    return f"{middle} ({low} to {high})"


def filled(page: str, results: dict[str, Any]) -> str:
    """Return the page with the table of `results`."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    main()
