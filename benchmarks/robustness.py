"""What each change of a scan costs: the scores of a model on changed scans, beside those on the scans as published.

    python benchmarks/robustness.py ../shared/data --split configs/splits/ich-effunet2d-3.json --at-once 2

CT-ICH (validation patients) gives detection per slice and false bleeds on clean slices, BHSD the outlines against drawn
masks. What a lone slice of BHSD cannot show (thickness, tilt) is told by how far CT-ICH's outlines agree with the
model's own on the scan as published. Intervals, also of the share of the score that is kept, come from a bootstrap over
patients. Writes benchmarks/results/robustness.json row by row (what an interrupted run lacks, `--only` adds), and fills
in the page at the end:
      python benchmarks/robustness.py --page
does that alone.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemolens.evaluation import weighted
from hemolens.evaluation.bootstrap import bootstrap
from hemolens.evaluation.corruptions import CORRUPTIONS, Corruption, Scan
from hemolens.evaluation.scored import Grid, is_blood
from hemolens.evaluation.summary import FALSE_BLEED_MM2
from hemolens.inference.predictor import Predictor
from hemolens.inference.registry import load_model
from hemolens.sources.datasets.cases import UNKNOWN, UNKNOWN_SUBTYPE, Case, DataSet, merged_findings
from hemolens.sources.datasets.opening import open_datasets
from hemolens.sources.splits import read_split

RESULTS = Path(__file__).parent / "results" / "robustness.json"
PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "robustness.md"
BEGIN, END = "<!-- robustness: begin (python benchmarks/robustness.py --page) -->", "<!-- robustness: end -->"
AS_PUBLISHED = Corruption("none", "as published", lambda scan, rng: scan)
SLICE_MM = 5.0
"""Of CT-ICH; slices of BHSD come alone."""
DETECTION, OUTLINE, AGREEMENT, CLEAN = "slice_auc", "dice", "agreement", "false_bleeds"
Outlines = dict[str, NDArray[np.bool_]]
"""The model's own on scans as published, by case."""


@dataclass(frozen=True)
class Row:
    """One slice after a change."""

    dataset: str
    patient: str
    truth: float
    probability: float
    both_px: int
    """Outlined, and in the truth: the drawn mask, or for CT-ICH the model's own outline on the scan as published."""
    found_px: int
    true_px: int
    outlined_mm2: float
    """Of a slice that is known to be clean, else NaN."""


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--split", type=Path)
    parser.add_argument("--model", default=None)
    parser.add_argument("--at-once", type=int, default=1, help="rows measured side by side, each on one thread")
    parser.add_argument("--only", default="", help="names of corruptions, separated by commas; the other rows stay")
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args()
    if asked.page:
        write_page()
        return
    if asked.data is None or asked.split is None:
        parser.error("needs DATA and --split")
    model = load_model(asked.model)
    patients = frozenset(read_split(asked.split).fold(0).validation)
    chosen = [c.name for c in CORRUPTIONS if not asked.only or c.name in asked.only.split(",")]
    results = {
        "model": model.name,
        "sha256": model.sha256,
        "outlined": model.thresholds.mask_told,
        "split": asked.split.name,
        "rows": {},
    }
    if asked.only:
        kept = json.loads(RESULTS.read_text("utf-8"))
        if any(kept[name] != results[name] for name in ("sha256", "outlined", "split")):
            parser.error(f"the rows that would stay are of {kept['model']}, not of this {model.name}")
        results["rows"] = kept["rows"]
    told = (asked.data, asked.model, patients)
    published, outlines = Bench(*told, Outlines()).rows(AS_PUBLISHED.name)
    keep(results, AS_PUBLISHED.name, compared(published, published))
    with ProcessPoolExecutor(asked.at_once, initializer=open_bench, initargs=(*told, outlines)) as pool:
        running = {pool.submit(rows_in_pool, name): name for name in chosen}
        for done in as_completed(running):
            keep(results, running[done], compared(done.result()[0], published))
    print(table(results))
    write_page()


def keep(results: dict[str, Any], name: str, scores: dict[str, Any]) -> None:
    """Write a row at once, in its place: a measurement that is cut off keeps what it has."""
    titles = {c.name: c.title for c in (AS_PUBLISHED, *CORRUPTIONS)}
    found = {**results["rows"], name: {"title": titles[name], **scores}}
    results["rows"] = {key: found[key] for key in titles if key in found}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(time.strftime("%H:%M:%S"), name, flush=True)


class Bench:
    """Model and data of one process, on one thread."""

    def __init__(self, data: Path, model: str | None, patients: frozenset[str], outlines: Outlines) -> None:
        self.predictor = Predictor(load_model(model), threads=1)
        self.datasets = open_datasets(data, ("ct_ich", "bhsd"))
        self.patients, self.outlines = patients, outlines

    def rows(self, name: str) -> tuple[list[Row], Outlines]:
        """Return the slices after a change, and the outlines of the scans as published."""
        (change,) = (c for c in (AS_PUBLISHED, *CORRUPTIONS) if c.name == name)
        return list(rows_of(self.predictor, self.datasets, self.patients, change, self.outlines)), self.outlines


_BENCH: list[Bench] = []


def open_bench(*told: Any) -> None:
    """Begin a process of the pool."""
    _BENCH.append(Bench(*told))


def rows_in_pool(name: str) -> tuple[list[Row], Outlines]:
    """Measure a row in a process of the pool."""
    return _BENCH[0].rows(name)[0], {}


def rows_of(
    predictor: Predictor,
    datasets: Sequence[DataSet],
    patients: frozenset[str],
    corruption: Corruption,
    outlines: Outlines,
) -> Iterable[Row]:
    """Yield the slices of the patients, and of all of BHSD, after a change."""
    for dataset in datasets:
        for case in dataset.cases:
            if case.group in patients or (case.dataset == "bhsd" and not corruption.across):
                yield from scored(predictor, dataset, case, corruption, outlines)


def scored(
    predictor: Predictor, dataset: DataSet, case: Case, corruption: Corruption, outlines: Outlines
) -> Iterable[Row]:
    """Change a scan, run the model on it, and compare slice by slice."""
    volume = dataset.volume(case)
    pixel_mm = float(np.sqrt(Grid.of(volume, case.dataset).pixel_mm2[0]))
    rng = np.random.default_rng(zlib.crc32(f"{corruption.name}/{case.id}".encode()))
    if case.dataset == "bhsd":
        labels = dataset.labels(case)
    else:
        labels = outlines.get(case.id, np.zeros(volume.shape, bool)).astype(np.uint8) * UNKNOWN_SUBTYPE
    scan = corruption.change(Scan.of(volume, labels, pixel_mm, SLICE_MM), rng)
    prediction = predictor.predict(scan.volume())
    outlined = prediction.outlined
    if corruption is AS_PUBLISHED:
        outlines[case.id] = outlined
        scan = replace(scan, labels=labels if case.dataset == "bhsd" else outlined.astype(np.uint8) * UNKNOWN_SUBTYPE)
    for k, members in enumerate(scan.sources):
        clean = all(case.slices[m].mask_state == "empty" for m in members) and case.dataset == "ct_ich"
        truth = merged_findings(case.slices[m].findings for m in members)[0]
        known = scan.labels[k] != UNKNOWN
        true, found = is_blood(scan.labels[k]) & known, outlined[k] & known
        yield Row(
            case.dataset,
            case.group,
            # Of a slice that holds parts of others it is known only where none of those bleeds, or all do.
            float("nan") if corruption.mixes and len({case.slices[m].findings[0] for m in members}) > 1 else truth,
            float(prediction.slice_probability[k, 0]) if case.dataset == "ct_ich" else float("nan"),
            int((true & found).sum()),
            int(found.sum()),
            int(true.sum()),
            float(outlined[k].sum()) * scan.pixel_mm**2 if clean else float("nan"),
        )


def compared(rows: Sequence[Row], published: Sequence[Row]) -> dict[str, Any]:
    """Return each score with its interval, and the share of the published scans' score that is kept."""
    found: dict[str, Any] = {}
    scores = ((DETECTION, detection), (OUTLINE, outline), (AGREEMENT, agreement), (CLEAN, false_bleeds))
    for name, score in scores:
        told = score(rows, rows)
        kept = score(rows, published, share=True)
        found[name] = {
            "value": rounded(told[0].value),
            "low": rounded(told[0].low),
            "high": rounded(told[0].high),
            "n": told[1],
            "patients": told[0].groups,
            "kept": rounded(kept[0].value),
            "kept_low": rounded(kept[0].low),
            "kept_high": rounded(kept[0].high),
        }
    return found


def detection(rows: Sequence[Row], against: Sequence[Row], share: bool = False) -> Any:
    """ROC-AUC per slice; `share`: divided by that of other rows of the same patients."""

    def auc(weights: Any, chosen: Sequence[Row]) -> Any:
        return weighted.auc(weights, [r.truth for r in chosen], [r.probability for r in chosen])

    return paired(rows, against, lambda r: np.isfinite(r.truth) and np.isfinite(r.probability), auc, share)


def outline(rows: Sequence[Row], against: Sequence[Row], share: bool = False) -> Any:
    """Pooled Dice against drawn masks."""
    return paired(rows, against, lambda r: r.dataset == "bhsd", dice, share)


def agreement(rows: Sequence[Row], against: Sequence[Row], share: bool = False) -> Any:
    """Pooled Dice against the model's own outlines of the scans as published."""
    return paired(rows, against, lambda r: r.dataset == "ct_ich" and r.found_px + r.true_px > 0, dice, share)


def dice(weights: Any, chosen: Sequence[Row]) -> Any:
    """Pooled over slices."""
    return weighted.ratio(weights, [2 * r.both_px for r in chosen], [r.found_px + r.true_px for r in chosen])


def false_bleeds(rows: Sequence[Row], against: Sequence[Row], share: bool = False) -> Any:
    """Share of clean slices with more than `FALSE_BLEED_MM2` outlined."""

    def over(weights: Any, chosen: Sequence[Row]) -> Any:
        return weighted.mean(weights, [float(r.outlined_mm2 > FALSE_BLEED_MM2) for r in chosen])

    return paired(rows, against, lambda r: np.isfinite(r.outlined_mm2), over, share)


def paired(rows: Sequence[Row], against: Sequence[Row], wanted: Any, score: Any, share: bool) -> Any:
    """Bootstrap a score, or its share of the score of other rows, drawing the same patients for both."""
    first, second = [r for r in rows if wanted(r)], [r for r in against if wanted(r)]
    if not share:
        return bootstrap([r.patient for r in first], lambda w: score(w, first)), len(first)
    n = len(first)

    def kept(weights: Any) -> Any:
        return weighted.divide(score(weights[:, :n], first), score(weights[:, n:], second))

    return bootstrap([r.patient for r in (*first, *second)], kept), n


def rounded(value: float) -> float | None:
    """Return four decimals, or None for an undefined number."""
    return round(value, 4) if np.isfinite(value) else None


def table(results: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    columns = (
        "scan", "slice ROC-AUC, CT-ICH", "kept", "pooled Dice, BHSD", "kept", "agreement with itself, CT-ICH",
        "clean slices with over 50 mm²", "slices",
    )  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in results["rows"].values():
        auc, drawn, own, clean = (row[name] for name in (DETECTION, OUTLINE, AGREEMENT, CLEAN))
        n = f"{auc['n']}, {drawn['n']}, {own['n']}, {clean['n']}"
        cells = [row["title"], spread(auc), share(auc), spread(drawn), share(drawn), spread(own), spread(clean, 100), n]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def told(results: dict[str, Any]) -> str:
    """Return what stands between the marks of the page."""
    patients = {name: results["rows"]["none"][name]["patients"] for name in (DETECTION, OUTLINE)}
    measured = (
        f"Measured with `{results['model']}` on {patients[DETECTION]} validation patients of CT-ICH and "
        f"{patients[OUTLINE]} patients of BHSD; blood is outlined {results['outlined']}. In bold where more than a "
        "tenth of the score is lost."
    )
    return f"{measured}\n\n{table(results)}"


def filled(page: str, results: dict[str, Any]) -> str:
    """Return the page with the table of `results`."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{told(results)}\n{END}{rest.split(END)[1]}"


def write_page() -> None:
    """Fill in the page from the results that are kept."""
    PAGE.write_text(filled(PAGE.read_text("utf-8"), json.loads(RESULTS.read_text("utf-8"))), encoding="utf-8")


def spread(cell: dict[str, Any], times: int = 1) -> str:
    """Write a score with its interval."""
    if cell["value"] is None:
        return "-"
    digits = 3 if times == 1 else 1
    unit = "" if times == 1 else " %"
    value = f"{times * cell['value']:.{digits}f}{unit}"
    if cell["low"] is None:
        return value
    return f"{value} ({times * cell['low']:.{digits}f} to {times * cell['high']:.{digits}f})"


def share(cell: dict[str, Any]) -> str:
    """Write what is kept of a score, in bold where more than a tenth is lost."""
    if cell["kept"] is None:
        return "-"
    text = f"{100 * cell['kept']:.0f} %"
    return f"**{text}**" if cell["kept"] < 0.9 else text


if __name__ == "__main__":
    main()
