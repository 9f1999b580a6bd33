"""Energy inside the lesion of the shipped model's maps, on every slice with a drawn mask.

python benchmarks/bench_explain.py ../shared/data --method gradcam --datasets bhsd,ct_ich
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np

from hemolens.explain.energy import Energy
from hemolens.explain.run import METHODS, ExplainConfig, explain
from hemolens.explain.subject import Subject, open_subject
from hemolens.explain.truth import TrueMask
from hemolens.sources.datasets.cases import UNKNOWN, DataSet
from hemolens.sources.datasets.opening import open_datasets


def scores_of(dataset: DataSet, subject: Subject, config: ExplainConfig) -> list[Energy]:
    """Score every slice with drawn blood."""
    scores = []
    for case in dataset.cases:
        drawn = [k for k, s in enumerate(case.slices) if s.mask_state == "drawn"]
        if not drawn:
            continue
        labels = dataset.labels(case)
        truth = TrueMask.of(np.where(labels == UNKNOWN, 0, labels).astype(np.uint8))
        slices = [k for k in drawn if truth.labels[k].any()]
        if slices:
            explanation = explain(dataset.volume(case), subject, config, slices)
            scores += [explanation.energy(truth, k) for k in slices]
    return scores


def main() -> None:
    """Print one line for each data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", choices=METHODS, default="gradcam")
    parser.add_argument("--datasets", default="bhsd,ct_ich")
    parser.add_argument("--model", default=None)
    told = parser.parse_args()
    subject = open_subject(told.model, gradients=told.method != "occlusion")
    for dataset in open_datasets(told.data, told.datasets.split(",")):
        started = time.perf_counter()
        scores = [s for s in scores_of(dataset, subject, ExplainConfig(told.method)) if math.isfinite(s.inside)]
        print(
            f"{told.method} {dataset.name}: n {len(scores)}, energy inside {np.mean([s.inside for s in scores]):.3f}, "
            f"chance {np.mean([s.chance for s in scores]):.3f}, above chance on {sum(s.ratio > 1 for s in scores)}, "
            f"peak inside on {sum(bool(s.peak_inside) for s in scores)}, "
            f"{(time.perf_counter() - started) / max(len(scores), 1):.1f} s a slice"
        )


if __name__ == "__main__":
    main()
