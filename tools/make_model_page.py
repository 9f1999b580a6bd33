"""Write docs/reference/model-card.md from the cards of the models that ship, and draw its pictures.

    python tools/make_model_page.py [--pictures ../shared/data]

Without --pictures only the text is written: everything in it stands in the cards.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hemolens.config import from_mapping
from hemolens.evaluation.drawing import panels
from hemolens.evaluation.gallery import Gallery, Picture
from hemolens.evaluation.scored import score_case
from hemolens.inference.predictor import Predictor
from hemolens.inference.registry import Model, Thresholds, list_models
from hemolens.sources.datasets.opening import open_datasets

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "model-card.md"
SPEED = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "analyze.json"
RUNTIMES = ("onnxruntime", "openvino")
WIDTH = 640
SHOWN = (
    ("best", 3, "The best outlines of drawn bleeds"),
    ("worst", 3, "The worst outlines of drawn bleeds"),
    ("false", 3, "Most outlined on slices without blood"),
    ("missed", 3, "Bleeding slices with the lowest score"),
)
"""Group of the gallery, how many of it, and the heading."""


def main() -> None:
    """Draw where asked to, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, metavar="DATA", help="folder that holds ct_ich")
    asked = parser.parse_args()
    models = list_models()
    if asked.pictures is not None:
        draw(models[0], asked.pictures)
    PAGE.write_text(page(models), encoding="utf-8")


def draw(model: Model, data: Path) -> None:
    """Draw the validation patients of CT-ICH: what the model does best and worst."""
    (ct_ich,) = open_datasets(data, ("ct_ich",))
    predictor, gallery = Predictor(model), Gallery(outlines=True)
    for case in ct_ich.cases:
        if case.patient in model.card["split"]["ct_ich"]["validation"]:
            score_case(predictor, ct_ich, case, ("validation",) * len(case.slices), watch=gallery.see)
    groups = {name: pictures for name, _, pictures in gallery.pictures()}
    for name, most, _ in SHOWN:
        if name in groups:
            sheet(groups[name][:most]).save(picture_path(name), optimize=True)


def sheet(pictures: Sequence[Picture]) -> Image.Image:
    """Put the panels of some slices below each other, all of one size."""
    rows = [Image.fromarray(panels(p)) for p in pictures]
    side = WIDTH // 3
    rows = [row.resize((round(row.width * side / row.height), side)) for row in rows]
    whole = Image.new("RGB", (WIDTH, sum(row.height for row in rows) + 4 * (len(rows) - 1)), "white")
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height + 4
    return whole


def picture_path(name: str) -> Path:
    """Return where the pictures of a group lie."""
    return PAGE.with_name(f"model-card-{name}.png")


def page(models: Sequence[Model]) -> str:
    """Return the page: the default model whole, of the others what differs."""
    first, *others = models
    return "\n".join([*whole(first), *(line for other in others for line in scores_of(other))]) + "\n"


def whole(model: Model) -> Iterator[str]:
    """Yield the lines of a model's card."""
    card = model.card
    yield from (
        "<!-- written by tools/make_model_page.py from the cards; change those -->",
        f"# Model card: {card['name']}",
    )
    yield from ("", f"{card['title']}. {card['intended_use']}", "", "| | |", "|---|---|")
    network, size = card["network"], card["preprocess"]["size"]
    for name, value in (
        ("license", card["license"]),
        ("network", f"{network['preset']}, {network['parameters']:,} parameters, ONNX"),
        ("file", f"`{card['file']}`, SHA-256 `{card['sha256'][:16]}...`"),
        ("made", f"{card['created'][:10]} with hemolens {card['hemolens_version']}"),
        ("measured at commit", f"`{card['measured_at_commit'][:12]}`"),
        ("input", f"{size} x {size} pixels, window 40/120, 3 slices"),
    ):
        yield f"| {name} | {value} |"
    for title, part in (
        ("What it was trained on", training(card)),
        ("Scores", scored(model)),
        ("Thresholds and calibration", chosen(card)),
        ("What it looks like", pictures()),
        ("How fast", speed(json.loads(SPEED.read_text(encoding="utf-8")))),
        ("Beside others", others()),
        ("Limits", (f"- {limit}" for limit in card["limits"])),
    ):
        yield from ("", f"## {title}", "", *part)


def training(card: Mapping[str, Any]) -> Iterator[str]:
    """Yield data, split and stages."""
    yield from (f"- {line}" for line in card["training"]["data"])
    yield ""
    yield "Patients, never slices, were split; validation sets calibration and thresholds and gives most scores:"
    yield from ("", "| data set | trained on | validation | test only |", "|---|---|---|---|")
    for dataset, sides in card["split"].items():
        yield f"| {dataset} | {' | '.join(str(len(sides.get(side, ()))) for side in ('train', 'validation', 'test'))} |"
    yield from ("", "| stage | steps | batch | rate | seed | starts from |", "|---|---|---|---|---|---|")
    for number, stage in enumerate(card["training"]["stages"], start=1):
        config = stage["config"]
        start, rate = config["start"] or "ImageNet encoder", config["optimizer"]["rate"]
        yield f"| {number} | {config['steps']} | {config['batch']} | {rate:g} | {config['seed']} | {start} |"
    yield from ("", "Every other setting stands in the card: `hemolens models show`.")


def scored(model: Model) -> Iterator[str]:
    """Yield the scores, and where more stand."""
    yield from scores(model)
    yield ""
    yield "What a change of the scan costs: [robustness](../explanation/robustness.md). What each idea brought:"
    yield "[experiments](../explanation/experiments.md)."


def chosen(card: Mapping[str, Any]) -> Iterator[str]:
    """Yield thresholds and what they rest on."""
    thresholds, calibration = card["thresholds"], card["calibration"]
    truth = calibration["study_truth"]
    yield f"Blood is outlined {from_mapping(Thresholds, thresholds, 'thresholds').mask_told}. A scan is called positive"
    yield (
        f"from {thresholds['study']:g} on (balanced, by Youden's index); 95 % of the bleeding validation scans reach "
        f"{thresholds['sensitive']:g}. Probabilities, these two thresholds"
    )
    yield (
        f"and the band of doubt rest on {len(truth)} scans, {sum(truth)} of them bleeding; the interval of the volume "
        f"on {len(calibration['volume_log_ratios'])} BHSD patients."
    )


def speed(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a scan takes, from the results of the benchmark."""
    machine, variants = results["machine"], results["variants"]
    yield f"{results['series']}, read, analyzed and reported on {machine['cores']} cores ({machine['cpu']}):"
    yield f"median of {results['repeats']} processes of their own, in seconds. `python benchmarks/bench_analyze.py`"
    yield "measures it anew."
    yield from ("", "| runtime | first scan | the next | start of Python and loading, before it |", "|---|---|---|---|")
    for name in RUNTIMES:
        timed = variants[name]
        starting = timed["import_s"] + timed["load_s"]
        yield f"| {name} | {timed['cold']['total_s']:.1f} | {timed['warm']['total_s']:.1f} | {starting:.1f} |"


def others() -> Iterator[str]:
    """Yield what others reach, as quoted."""
    yield "Quoted from the feasibility study that this network follows, on other patients of the same data sets"
    yield "(CT-ICH: 23 drawn slices of 2 patients; BHSD: 72 slices). BLAST-CT's weights could not be had here, so that"
    yield "nothing was run beside it."
    yield from ("", "| | CT-ICH drawn, pooled Dice | BHSD, pooled Dice | 32 slices, two cores |", "|---|---|---|---|")
    yield "| BLAST-CT v1, one model (184 annotated scans) | 0.33 and 0.46 by patient | - | 287 s |"
    yield "| feasibility study, two rounds of self-training | 0.67 | 0.65 | - |"


def pictures() -> Iterator[str]:
    """Yield the pictures that are there."""
    yield "Validation patients of CT-ICH (Hssayeni et al. 2020, CC BY 4.0): image, drawn blood where it is published,"
    yield "outline."
    for name, _, title in SHOWN:
        if picture_path(name).exists():
            yield from ("", f"{title}:", "", f"![{title}]({picture_path(name).name})")


def scores_of(model: Model) -> Iterator[str]:
    """Yield what differs of another model."""
    card = model.card
    yield ""
    yield f"## {card['name']}"
    yield ""
    yield f"{card['title']}; `{card['file']}`, SHA-256 `{card['sha256'][:16]}...`. Used with `--model {card['name']}`."
    yield ""
    yield from scores(model)


def scores(model: Model) -> Iterator[str]:
    """Yield the table of a card's scores."""
    yield "| on | score | value | 95 % interval | n |"
    yield "|---|---|---|---|---|"
    for row in model.card["metrics"]:
        low, high = (number(row[key]) for key in ("low", "high"))
        n = f"{row['n']} {row['unit']}"
        n += "" if row["unit"] == "patients" else f", {row['patients']} patients"
        yield f"| {row['on']} | {row['metric']} | {number(row['value'])} | {low} to {high} | {n} |"


def number(value: float | None) -> str:
    """Write a score."""
    return "-" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


if __name__ == "__main__":
    main()
