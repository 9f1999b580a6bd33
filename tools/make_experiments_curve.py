"""Draw docs/explanation/experiments.png: what each step of the log brought, from the table of the log itself.

python tools/make_experiments_curve.py
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

LOG = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "experiments.md"
PICTURE = LOG.with_suffix(".png")
HEADING = "## Where we stand"
GOALS = {
    "BHSD, pooled Dice": 0.75,
    "CT-ICH 77-79, pooled Dice": 0.45,
    "slice ROC-AUC": 0.97,
    "clean slices over 50 mm²": 1.0,
    "edema, pooled Dice": 0.60,
}
"""What was to be reached, by column; the fourth in percent, and the lower the better."""
SHIPPED, TRIED = "#c0392b", "#7f8c8d"


@dataclass(frozen=True)
class Table:
    """The log's first table."""

    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def digest(self) -> str:
        """What the picture carries, so that a test can tell whether it shows this table."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def points(self, column: str) -> tuple[list[int], list[float]]:
        """Return the steps that have a score, and their scores."""
        place = self.columns.index(column)
        found = {int(row[0]): row[place].removesuffix(" %") for row in self.rows if row[place] != "-"}
        return list(found), [float(score) for score in found.values()]

    def shipped(self) -> set[int]:
        """Return the steps that shipped."""
        return {int(row[0]) for row in self.rows if "ship" in row[1]}


def read_table(log: str) -> Table:
    """Return the table below `HEADING`."""
    lines = re.findall(r"^\|.*\|$", log.partition(HEADING)[2].partition("\n## ")[0], re.MULTILINE)
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return Table("\n".join(lines), cells[0], tuple(cells[2:]))


def draw(table: Table, path: Path) -> None:
    """Draw a panel for each score that has a goal."""
    figure, panels = plt.subplots(1, len(GOALS), figsize=(15, 3.2), layout="constrained")
    shipped = table.shipped()
    for panel, (column, goal) in zip(panels, GOALS.items(), strict=True):
        steps, scores = table.points(column)
        panel.plot(steps, scores, color=TRIED, linewidth=1)
        panel.scatter(steps, scores, color=[SHIPPED if s in shipped else TRIED for s in steps], zorder=3, s=28)
        panel.axhline(goal, color="black", linestyle="--", linewidth=1)
        panel.set_title(f"{column}{' (%)' if goal >= 1 else ''}", fontsize=10)
        panel.set_xlim(0.3, len(table.rows) + 0.7)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.margins(y=0.15)
        panel.set_xlabel("row of the table")
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=100, metadata={"Description": table.digest})
    plt.close(figure)


if __name__ == "__main__":
    draw(read_table(LOG.read_text(encoding="utf-8")), PICTURE)
