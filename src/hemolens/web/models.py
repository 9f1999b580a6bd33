"""The models with their cards: what each was trained on, how well it does, and what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hemolens.errors import ModelError
from hemolens.inference.registry import RUN_CARD, Model, list_models, load_model
from hemolens.measurements.findings import NOTICE
from hemolens.web.findings import table
from hemolens.web.session import settings
from hemolens.web.training import DEPTH

MOST_RUNS = 50


def find_models() -> list[tuple[str, Model]]:
    """Return the models that ship, then those of training runs, each with a title."""
    found = [(model.name, model) for model in list_models()]
    runs = settings().runs
    if runs is not None and runs.is_dir():
        cards = sorted(p for depth in range(1, DEPTH) for p in runs.glob("/".join(["*"] * depth + [RUN_CARD])))
        for card in cards[:MOST_RUNS]:
            try:
                found.append((f"run {card.parent.relative_to(runs).as_posix()}", load_model(str(card.parent))))
            except ModelError:
                continue  # of another version, or half written: it is no model to show
    return found


def metric_rows(card: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    """Return the metrics of a card with their intervals; nothing where it has none in the known form."""
    told = card.get("metrics")
    if not isinstance(told, list):
        return []
    rows = []
    for entry in told:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("value"), (int, float)):
            continue
        value = f"{entry['value']:.3f}"
        low, high = entry.get("low"), entry.get("high")
        if isinstance(low, (int, float)) and isinstance(high, (int, float)):
            value += f" ({low:.3f} to {high:.3f})"
        amount = f"{entry.get('n', '')} {entry.get('unit', '')}".strip()
        rows.append((str(entry.get("on", "")), str(entry.get("metric", "")), value, amount))
    return rows


def lines(value: Any) -> list[str]:
    """Return what a card says under one key as lines: one text, several, or nothing."""
    if isinstance(value, str):
        return [value]
    return [str(line) for line in value] if isinstance(value, list) else []


def show(ui: Any) -> None:
    """Draw the page."""
    found = dict(find_models())
    if not found:
        ui.info(
            "No model is installed. Reinstall hemolens, or start the app with --runs and a folder of training runs."
        )
        return
    used = settings().model
    title = ui.selectbox("Model", list(found), key="model-card")
    model = found[title]
    card = model.card
    ui.subheader(str(card.get("title", model.name)), anchor=False)
    if used in {None, model.name} and title == next(iter(found)):
        ui.caption("Scans opened in this app are analyzed with it.")
    ui.markdown(str(card.get("intended_use", NOTICE)))
    limits = lines(card.get("limits"))
    if limits:
        ui.markdown("### What it cannot do\n" + "\n".join(f"- {line}" for line in limits))
    rows = metric_rows(card)
    if rows:
        ui.markdown("### How well it does")
        ui.markdown(table(("On", "Metric", "Value (95 % interval)", "Of"), rows))
    training = card.get("training")
    data = lines(training.get("data")) if isinstance(training, Mapping) else []
    if data:
        ui.markdown("### What it was trained on\n" + "\n".join(f"- {line}" for line in data))
    facts = [
        ("Study threshold", f"{model.thresholds.study:.4f}"),
        ("Blood is outlined", model.thresholds.mask_told),
        ("License", str(card.get("license", "–"))),
        ("Made", str(card.get("created", "–"))),
        ("SHA-256", model.sha256),
    ]
    ui.markdown(table(("Fact", "Value"), facts))
    with ui.expander("The whole card (JSON)"):
        ui.json(dict(card), expanded=False)
