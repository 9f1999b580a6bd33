"""The students' two projects and each of their wishes, trained and scored one after the other.

The rows stand in configs/students/rows.toml. A row that is done is skipped, one that was cut off goes on from its last
checkpoint, so that the same command can be given as often as it takes:

Run:  python benchmarks/students.py --data ../shared/data [--runs runs/students] [--only unet-patients cnn-3d] [--list]
Writes benchmarks/results/students.json after every row, and the table of docs/explanation/students.md (which
      python benchmarks/students.py --page
does alone).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import platform
import resource
import shlex
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = "configs/students"
ROWS = ROOT / CONFIGS / "rows.toml"
RESULTS = ROOT / "benchmarks" / "results" / "students.json"
PAGE = ROOT / "docs" / "explanation" / "students.md"
DATA, RUNS = "../shared/data", "runs/students"
"""As the page prints them."""
TASKS = ("segmentation", "classification")
BEGIN, END = "<!-- {}: begin (python benchmarks/students.py --page) -->", "<!-- {}: end -->"


@dataclass(frozen=True)
class Column:
    """One score of the table."""

    title: str
    dataset: str
    level: str
    metric: str
    point: str = ""
    percent: bool = False

    def of(self, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return the score of a row of the results, on its test side."""
        wanted = (self.dataset, self.level, self.metric, self.point)
        for told in row["scores"]:
            if (told["dataset"], told["level"], told["metric"], told["point"]) == wanted:
                return told
        return None


POINT = "youden"
"""Where yes-or-no answers are shown: the threshold of highest sensitivity + specificity on validation patients."""


def told_of(level: str) -> tuple[Column, ...]:
    """Return the columns of hemorrhage or not."""
    at_point = (("accuracy", "accuracy"), ("precision", "precision"), ("recall", "recall"), ("F1", "f1"))
    return (
        *(Column(title, "ct_ich", level, metric, POINT) for title, metric in at_point),
        Column("ROC-AUC", "ct_ich", level, "roc_auc"),
        Column("average precision", "ct_ich", level, "average_precision"),
    )


TABLES = {"segmentation": "segmentation", "classification": "classification", "scans": "classification"}
"""Each table and the task whose rows it shows; whole scans are told by the classifiers, too."""
COLUMNS = {
    "segmentation": (
        Column("BHSD, Dice of all blood pooled", "bhsd", "slice", "pooled_dice"),
        Column("BHSD, mean Dice of a slice", "bhsd", "slice", "mean_dice"),
        Column("CT-ICH, drawn blood, pooled Dice", "ct_ich", "slice", "pooled_dice"),
        Column("CT-ICH, clean slices with over 50 mm² outlined", "ct_ich", "slice", "share_over_50_mm2", percent=True),
        Column("mm² outlined on a clean slice", "ct_ich", "slice", "mean_false_mm2"),
    ),
    "classification": told_of("slice"),
    "scans": told_of("scan"),
}


@dataclass(frozen=True)
class Row:
    """One row: what it is and the commands that make it."""

    name: str
    task: str
    title: str
    minutes: float
    after: str
    commands: tuple[str, ...]
    """As the page prints them: an optional search, the training, the evaluation."""

    @property
    def digest(self) -> str:
        """Of the commands: results of other ones are not taken for this row's."""
        return hashlib.sha256("\n".join(self.commands).encode()).hexdigest()[:16]


def read_rows(path: Path = ROWS) -> tuple[Row, ...]:
    """Return the rows in the order of the table."""
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    return tuple(_row(task, told[task], row) for task in TASKS for row in told[task]["row"])


def _row(task: str, common: Mapping[str, Any], row: Mapping[str, Any]) -> Row:
    strange = set(row) - {"name", "title", "preset", "split", "fold", "settings", "tune", "trials", "minutes", "after"}
    if strange:
        raise SystemExit(f"{ROWS}: row {row['name']} has an unknown key {sorted(strange)[0]}.")
    name, split = row["name"], f"{CONFIGS}/{row.get('split', common['split'])}"
    data = f"--data {DATA} --datasets {common['train']} --split {split} --fold {row.get('fold', common['fold'])}"
    cache = f"--cache {RUNS}/cache"
    preset, commands = row["preset"], []
    if "tune" in row:
        search = f"{RUNS}/{name}-search"
        words = " ".join([*common["settings"], *row["tune"]])
        commands.append(f"hemolens tune {preset} {data} --trials {row['trials']} --run {search} {cache} {words}")
        preset = f"{search}/best.toml"
    words = " ".join([*common["settings"], *row.get("settings", ())])
    commands.append(f"hemolens train {preset} {data} --run {RUNS}/{name} {cache} {words}".rstrip())
    commands.append(
        f"hemolens evaluate {RUNS}/{name} --data {DATA} --datasets {common['evaluate']} -o {RUNS}/{name}-scores"
    )
    return Row(name, task, row["title"], row["minutes"], row.get("after", ""), tuple(commands))


def read_results() -> dict[str, Any]:
    """Return what was measured so far, by the row's name."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else {}


def done_rows(rows: Sequence[Row], results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of the rows as they are now; those of other commands are none."""
    return {r.name: results[r.name] for r in rows if results.get(r.name, {}).get("digest") == r.digest}


def next_rows(rows: Sequence[Row], done: Mapping[str, Any], failed: Sequence[str] = ()) -> list[Row]:
    """Return what can be run now, the shortest first."""
    todo = [r for r in rows if r.name not in done and r.name not in failed]
    return sorted((r for r in todo if not r.after or r.after in done), key=lambda r: r.minutes)


def main() -> None:
    """Run what is not done yet, or only write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / DATA)
    parser.add_argument("--runs", type=Path, default=ROOT / RUNS, help="folder of the runs and their common cache")
    parser.add_argument("--only", nargs="+", default=(), metavar="ROW")
    parser.add_argument("--list", action="store_true", help="show the rows and whether they are done")
    parser.add_argument("--page", action="store_true", help="only write the table into the page")
    chosen = parser.parse_args()
    rows = read_rows()
    strange = set(chosen.only) - {r.name for r in rows}
    if strange:
        parser.error(f"there is no row {sorted(strange)[0]}; rows are {', '.join(r.name for r in rows)}")
    if chosen.list:
        done = done_rows(rows, read_results())
        for row in rows:
            print(f"{row.name:18} {'done' if row.name in done else f'{row.minutes:g} min':8} {row.title}")
    elif not chosen.page:
        run_rows([r for r in rows if not chosen.only or r.name in chosen.only], rows, chosen.data, chosen.runs)
    write_page(rows, read_results())


def run_rows(wanted: Sequence[Row], rows: Sequence[Row], data: Path, runs: Path) -> None:
    """Run rows until none is left that can be run; one that fails is told and passed over."""
    failed: list[str] = []
    while ready := next_rows(wanted, done_rows(rows, read_results()), failed):
        row = ready[0]
        try:
            told = run_row(row, data, runs)
        except subprocess.CalledProcessError as error:
            print(f"{row.name}: exit code {error.returncode} of {shlex.join(error.cmd)}", file=sys.stderr, flush=True)
            failed.append(row.name)
            continue
        write_results(row, told)
        print(f"{row.name}: {told['wall_seconds']} s", file=sys.stderr, flush=True)
        write_page(rows, read_results())
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}. The same command tries again.")


def run_row(row: Row, data: Path, runs: Path) -> dict[str, Any]:
    """Run the commands of a row, and return its results."""
    seconds, processor = {}, {}
    resumed = (runs / row.name / "checkpoint.pt").exists()
    for command in row.commands:
        verb, words = command.split()[1], shlex.split(_placed(command, data, runs))[1:]
        extra = {"train": ["--resume", "--quiet"], "tune": ["--quiet"], "evaluate": ["--overwrite", "--quiet"]}[verb]
        print(f"{time.strftime('%H:%M:%S')} {row.name}: {verb}", file=sys.stderr, flush=True)
        since, used = time.monotonic(), _processor_seconds()
        subprocess.run([sys.executable, "-m", "hemolens", *words[:1], *extra, *words[1:]], cwd=ROOT, check=True)
        seconds[verb] = round(time.monotonic() - since)
        processor[verb] = None if resumed else round(_processor_seconds() - used)
    told = measured(row, runs / row.name, runs / f"{row.name}-scores")
    return {**told, "wall_seconds": seconds, "processor_seconds": processor}


def _processor_seconds() -> float:
    """Return what all finished child processes used, of all cores together: other work hardly changes it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _placed(command: str, data: Path, runs: Path) -> str:
    """Return a command with the folders of this machine in place of those that the page prints."""
    return command.replace(RUNS, shlex.quote(str(runs.absolute()))).replace(DATA, shlex.quote(str(data.absolute())))


def measured(row: Row, run: Path, scores: Path) -> dict[str, Any]:
    """Return what a run and its evaluation say of a row."""
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    metrics = json.loads((scores / "metrics.json").read_text(encoding="utf-8"))
    with (run / "log.csv").open(encoding="utf-8", newline="") as file:
        log = list(csv.DictReader(file))
    session = provenance["sessions"][-1]
    return {
        "digest": row.digest,
        "task": row.task,
        "title": row.title,
        "commands": list(row.commands),
        "steps": int(float(log[-1]["step"])),
        "epochs": round(float(log[-1]["epoch"]), 2),
        "train_seconds": round(float(log[-1]["seconds"])),
        "kept_step": kept_step(run),
        "commit": session["commit"],
        "machine": machine(session),
        "leaks": any(model["split"]["leaks"] for model in metrics["models"]),
        "last_validation": _last_validation(log),
        "sets": [
            {key: s[key] for key in ("dataset", "side", "patients", "scans", "slices", "masks")}
            for s in metrics["sets"] if s["side"] == "test"
        ],
        "scores": list(_scores(metrics)),
    }  # fmt: skip


def kept_step(run: Path) -> int:
    """Return the step whose weights were kept."""
    import torch

    return int(torch.load(run / "best.pt", map_location="cpu", weights_only=True)["step"])


def _last_validation(log: Sequence[Mapping[str, str]]) -> dict[str, float]:
    told = [row for row in log if any(k.startswith("val_") and v for k, v in row.items())]
    return {k: round(float(v), 5) for k, v in told[-1].items() if k.startswith("val_") and v} if told else {}


def _scores(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what is told of "any" on the test side, at the operating point of the page."""
    keys = ("level", "metric", "point", "value", "low", "high", "n", "unit", "patients", "positives")
    for told in metrics["sets"]:
        for measure in told["measures"] if told["side"] == "test" else ():
            if measure["finding"] == "any" and measure["point"] in ("", POINT):
                yield {"dataset": told["dataset"], **{key: measure[key] for key in keys}}


def machine(session: Mapping[str, Any]) -> str:
    """Say what kind of machine it was, without its name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpus = "".join(f", {name}" for name in session["machine"]["gpus"])
    return f"{models[0] if models else platform.machine()}, {session['machine']['cores']} cores{gpus}"


def write_results(row: Row, told: Mapping[str, Any]) -> None:
    """Add a row; the file is whole at any time."""
    rows = {**read_results(), row.name: dict(told)}
    order = [r.name for r in read_rows() if r.name in rows]
    part = RESULTS.with_suffix(".part")
    text = json.dumps({"rows": {name: rows[name] for name in order}}, indent=1, ensure_ascii=False, allow_nan=False)
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(RESULTS)


def table(name: str, rows: Sequence[Row], results: Mapping[str, Any]) -> str:
    """Return one of `TABLES`: the rows that are measured."""
    done, columns, task = done_rows(rows, results), COLUMNS[name], TABLES[name]
    head = ["", "row", *(c.title for c in columns), "steps (kept)", "passes", "processor minutes"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for number, row in numbered(task, rows):
        if row.name in done:
            told = done[row.name]
            mark = " **Leaky: not a performance.**" if told["leaks"] else ""
            cells = [
                str(number), f"{row.title}.{mark}", *(cell(column, told) for column in columns),
                f"{told['steps']} ({told['kept_step']})", f"{told['epochs']:.1f}", _minutes(told),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else "No row is measured yet."


def _minutes(told: Mapping[str, Any]) -> str:
    """Return the processor time of the training, and of the search before it; unknown where a run was cut off."""
    used = [told["processor_seconds"].get(verb, 0) for verb in ("tune", "train")]
    return "-" if None in used else f"{sum(used) / 60:.0f}"


def numbered(task: str, rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """Return the rows of a task, counted from 1."""
    return list(enumerate((r for r in rows if r.task == task), 1))


def cell(column: Column, told: Mapping[str, Any]) -> str:
    """Return a score with its interval and n, or a dash where the network does not tell it."""
    score = column.of(told)
    if score is None:
        return "-"
    counted = [f"{score['n']} {'scans' if column.level == 'scan' else 'slices'}", f"{score['patients']} patients"]
    if score["positives"] is not None:
        counted.append(f"{score['positives']} with blood")
    return f"{_number(column, score)}<br><sub>{', '.join(counted)}</sub>"


def _number(column: Column, score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return "undefined"
    scale, unit = (100, " %") if column.percent else (1, "")
    digits = 1 if column.percent or column.metric == "mean_false_mm2" else 2
    value, low, high = (
        None if score[k] is None else f"{scale * score[k]:.{digits}f}" for k in ("value", "low", "high")
    )
    return f"{value}{unit}" if low is None else f"{value}{unit} ({low} to {high})"


def missing(rows: Sequence[Row], results: Mapping[str, Any]) -> str:
    """Return which rows are not measured yet."""
    done = done_rows(rows, results)
    names = [f"{task} {n} ({r.title})" for task in TASKS for n, r in numbered(task, rows) if r.name not in done]
    if not names:
        return "Every row is measured."
    return "\n".join(["Not measured yet:", "", *(f"- {name}" for name in names)])


def commands(task: str, rows: Sequence[Row]) -> str:
    """Return the commands of every row of a task."""
    lines = ["```bash"]
    for number, row in numbered(task, rows):
        lines += [f"# {number}: {row.name}", *row.commands]
    return "\n".join([*lines, "```"])


def parts(rows: Sequence[Row], results: Mapping[str, Any]) -> dict[str, str]:
    """Return what stands between the markers of the page."""
    return {
        **{name: table(name, rows, results) for name in TABLES},
        "missing": missing(rows, results),
        **{f"{task} commands": commands(task, rows) for task in TASKS},
    }


def filled(page: str, made: Mapping[str, str]) -> str:
    """Return the page with each part between its markers."""
    for name, text in made.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"{PAGE} has no '{begin}' … '{end}'.")
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def write_page(rows: Sequence[Row], results: Mapping[str, Any]) -> None:
    """Put the tables into the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), parts(rows, results)), encoding="utf-8")


if __name__ == "__main__":
    main()
