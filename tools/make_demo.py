"""Make the phantom head that `hemolens analyze --demo` runs on: a DICOM series, the truth about its bleeds, provenance.

Run from the project's root, with the test extra installed (nilearn carries the MNI152 maps)::

    python tools/make_demo.py

It takes about fifteen minutes on two cores and writes into src/hemolens/demo. The same seed gives the same head.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from demo_head.anatomy import MNI_FILE, maps_folder
from demo_head.bleeds import NAMES
from demo_head.head import Head
from demo_head.series import Protocol, ct_image, render, true_labels, uid

VERSION = "1.0"
SEED = 7
LABELS = {"epidural": 1, "subdural": 2, "subarachnoid": 3, "intraparenchymal": 4, "intraventricular": 5}
"""As in hemolens.labels."""
TRUTH_STEP_MM = 0.5
Bleed = dict[str, Any]
OUT = Path(__file__).resolve().parents[1] / "src" / "hemolens" / "demo"


def true_bleeds(head: Head, step_mm: float = TRUTH_STEP_MM) -> list[Bleed]:
    """Integrate each bleed on a grid in the room that knows nothing of slices."""
    coarse = _occupied(head, 2.0)
    found: list[Bleed] = []
    for name in NAMES:
        low, high = (np.array(bound) for bound in coarse[name])
        axes = [np.arange(a - 3.0, b + 3.0, step_mm, dtype=np.float32) for a, b in zip(low, high, strict=True)]
        count, total = 0, np.zeros(3)
        for z in axes[2]:
            plane = np.stack(np.meshgrid(axes[0], axes[1], [z], indexing="ij"), axis=-1).reshape(-1, 3)
            inside = plane[head.bleeds(plane)[name] < 0]
            count, total = count + len(inside), total + inside.sum(axis=0, dtype=np.float64)
        center = [round(float(v), 2) for v in total / count]
        found.append({"subtype": name, "volume_ml": round(count * step_mm**3 / 1000.0, 3), "centroid_mm": center})
    return found


def _occupied(head: Head, step_mm: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the box around each bleed, found on a coarse grid."""
    axis = np.arange(-110, 110, step_mm, dtype=np.float32)
    boxes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for z in axis:
        plane = np.stack(np.meshgrid(axis, axis, [z], indexing="ij"), axis=-1).reshape(-1, 3)
        for name, distance in head.bleeds(plane).items():
            inside = plane[distance < 0]
            if len(inside):
                low, high = boxes.get(name, (inside[0], inside[0]))
                boxes[name] = np.minimum(low, inside.min(axis=0)), np.maximum(high, inside.max(axis=0))
    return boxes


def one_slice(index: int, protocol: Protocol, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the image and the true label map of one slice."""
    head = _head(seed)
    labels = np.zeros((protocol.scanner.size,) * 2, np.uint8)
    for name, share in true_labels(protocol, head, index).items():
        labels[share >= 0.5] = LABELS[name]
    return render(protocol, head, index, seed), labels


def _head(seed: int, _made: dict[int, Head] = {}) -> Head:  # noqa: B006 -- one head per process, made when first asked for
    if seed not in _made:
        _made[seed] = Head.make(seed)
    return _made[seed]


def provenance(protocol: Protocol, seed: int, files: list[Path]) -> dict[str, object]:
    """Return what the series was made of and how."""
    here = Path(__file__).parent
    sources = [here / "make_demo.py", *sorted((here / "demo_head").glob("*.py"))]
    return {
        "generator": "tools/make_demo.py",
        "generator_version": VERSION,
        "generator_sha256": _digest(sources),
        "seed": seed,
        "packages": {n: importlib.metadata.version(n) for n in ("nilearn", "numpy", "scipy", "pydicom")},
        "atlas": "MNI152 ICBM 2009a nonlinear symmetric, gray matter, white matter and T1, as packaged in nilearn",
        "atlas_sha256": {n: _digest([maps_folder() / MNI_FILE.format(n)]) for n in ("gm", "wm", "t1")},
        "atlas_citation": "Fonov VS et al. NeuroImage 2011;54(1):313-327, doi:10.1016/j.neuroimage.2010.07.033",
        "series_sha256": _digest(files),
    }


def _digest(files: list[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


def write(
    out: Path, protocol: Protocol, seed: int, made: list[tuple[np.ndarray, np.ndarray]], bleeds: list[Bleed]
) -> None:
    """Write the series, the true label map and the truth into `out`."""
    series = out / "series"
    series.mkdir(parents=True, exist_ok=True)
    files = [series / f"{index + 1:02d}.dcm" for index in range(protocol.slices)]
    for index, (file, (image, _)) in enumerate(zip(files, made, strict=True)):
        ct_image(protocol, index, image, seed, VERSION).save_as(file, enforce_file_format=True)
    labels = np.stack([label for _, label in made])
    np.savez_compressed(out / "labels.npz", labels=labels)
    voxel_ml = protocol.scanner.pixel_mm**2 * protocol.thickness_mm / 1000.0
    for bleed in bleeds:
        bleed["label_map_ml"] = round(float((labels == LABELS[bleed["subtype"]]).sum() * voxel_ml), 3)
    truth = {
        "series_uid": uid("series", seed, VERSION),
        "slices": protocol.slices,
        "spacing_mm": [protocol.thickness_mm, protocol.scanner.pixel_mm, protocol.scanner.pixel_mm],
        "tilt_deg": protocol.tilt_deg,
        "lesions": bleeds,
        "provenance": provenance(protocol, seed, files),
    }
    (out / "truth.json").write_text(json.dumps(truth, indent=2) + "\n", encoding="utf-8")
    print(f"{len(files)} slices, {sum(f.stat().st_size for f in files) / 1e6:.2f} MB in {series}")
    for bleed in bleeds:
        print(f"  {bleed['subtype']}: {bleed['volume_ml']} ml, {bleed['label_map_ml']} ml on the grid of the slices")


def main() -> None:
    """Make everything."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the demo (default: in the package)")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    protocol = Protocol()
    with ProcessPoolExecutor(arguments.workers) as pool:
        made = list(pool.map(partial(one_slice, protocol=protocol, seed=arguments.seed), range(protocol.slices)))
    write(arguments.out, protocol, arguments.seed, made, true_bleeds(_head(arguments.seed)))


if __name__ == "__main__":
    main()
