"""The students' table: its rows, their commands, the driver and the page."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from conftest import ROOT
from hemolens.sources.splits import group_of, read_split
from hemolens.training.config import load_preset, parse_overrides
from hemolens.training.tune import parse_space
from scripts import script

students = script("benchmarks", "students")

ROWS = students.read_rows()
RESULTS = students.read_results()
PAGE = (ROOT / "docs/explanation/students.md").read_text("utf-8")


def words_of(row: Any, verb: str) -> list[str]:
    return next((shlex.split(c) for c in row.commands if c.split()[1] == verb), [])


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def settings(words: list[str]) -> list[str]:
    return [w for w in words if "=" in w and not w.startswith("-")]


class TestRows:
    @pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
    def test_its_settings_are_known_and_reach_the_configuration(self, row: Any) -> None:
        train, search = words_of(row, "train"), words_of(row, "tune")
        preset = search[2] if search else train[2]
        _, plain = parse_space(settings(search))
        config = load_preset(preset, {**parse_overrides(plain), **parse_overrides(settings(train))})
        assert config.steps or config.epochs
        if row.task == "segmentation":
            assert config.data.clean_phe == 0  # truly empty masks are CT-ICH's

    def test_only_the_first_row_of_each_task_leaks(self) -> None:
        for task in students.TASKS:
            leaky = [read_split(ROOT / option(words_of(r, "train"), "--split")).leaks for r in ROWS if r.task == task]
            assert leaky == [True] + [False] * (len(leaky) - 1)

    @pytest.mark.parametrize("name", ["patients", "ct_ich-patients"])
    def test_nobody_stands_on_two_sides(self, name: str) -> None:
        split = read_split(ROOT / f"configs/students/{name}.json")
        for fold in split.folds:
            sides = [{group_of(m) for m in side} for side in (fold.train, fold.validation, fold.test)]
            assert sum(map(len, sides)) == len(set().union(*sides))
            assert not any(m.startswith("bhsd/") for m in (*fold.train, *fold.validation))

    def test_derived_masks_are_never_scored(self) -> None:
        for row in ROWS:
            assert "phe_sich" not in option(words_of(row, "evaluate"), "--datasets")

    def test_a_row_changes_its_digest_with_its_commands(self) -> None:
        assert len({r.digest for r in ROWS}) == len(ROWS)
        row = ROWS[0]
        changed = students.Row(row.name, row.task, row.title, row.minutes, row.after, (*row.commands[:-1], "other"))
        assert students.done_rows([changed], {row.name: {"digest": row.digest}}) == {}


class TestDriver:
    def test_short_rows_come_first_and_wait_for_what_they_need(self) -> None:
        order, done = [], {}
        while ready := students.next_rows(ROWS, done):
            order.append(ready[0].name)
            done[ready[0].name] = {}
        assert sorted(order) == sorted(r.name for r in ROWS)
        assert order.index("cnn-pretrained") < order.index("cnn-sequence")
        minutes = {r.name: r.minutes for r in ROWS}
        free = [minutes[name] for name in order if name != "cnn-sequence"]
        assert free == sorted(free)

    def test_what_is_done_stays_and_what_failed_is_tried_again(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A row that fails does not keep the others; the next call runs it alone."""
        monkeypatch.setattr(students, "RESULTS", tmp_path / "students.json")
        monkeypatch.setattr(students, "write_page", lambda rows, results: None)
        ran: list[str] = []
        broken = {"cnn-pretrained"}

        def run_row(row: Any, data: Path, runs: Path) -> dict[str, Any]:
            ran.append(row.name)
            if row.name in broken:
                raise subprocess.CalledProcessError(1, ["hemolens", "train"])
            return {"digest": row.digest, "wall_seconds": {}}

        monkeypatch.setattr(students, "run_row", run_row)
        with pytest.raises(SystemExit, match="cnn-pretrained"):
            students.run_rows(ROWS, ROWS, tmp_path, tmp_path)
        assert sorted(ran) == sorted(r.name for r in ROWS if r.name != "cnn-sequence")
        ran.clear()
        broken.clear()
        students.run_rows(ROWS, ROWS, tmp_path, tmp_path)
        assert ran == ["cnn-pretrained", "cnn-sequence"]
        assert list(students.read_results()) == [r.name for r in ROWS]

    def test_commands_run_as_printed_but_for_the_folders(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        ran: list[list[str]] = []
        monkeypatch.setattr(students.subprocess, "run", lambda words, **_: ran.append(words))
        monkeypatch.setattr(students, "measured", lambda *_: {})
        row = next(r for r in ROWS if r.name == "unet-tuned")
        students.run_row(row, tmp_path / "my data", tmp_path / "runs")
        assert [words[3] for words in ran] == ["tune", "train", "evaluate"]
        for words, command in zip(ran, row.commands, strict=True):
            assert option(words, "--data") == str(tmp_path / "my data")
            assert not any("runs/students" in w for w in words)
            assert set(settings(shlex.split(command))) <= set(words)
        assert "--resume" in ran[1]


class TestPage:
    def test_it_says_what_was_measured(self) -> None:
        """`python benchmarks/students.py --page` would change nothing."""
        assert students.filled(PAGE, students.parts(ROWS, RESULTS)) == PAGE

    def test_every_row_is_in_the_table_or_told_to_be_missing(self) -> None:
        done = students.done_rows(ROWS, RESULTS)
        told = students.missing(ROWS, RESULTS)
        for row in ROWS:
            number = [r.name for r in ROWS if r.task == row.task].index(row.name) + 1
            measured = f"| {number} | {row.title}." in students.table(row.task, ROWS, RESULTS)
            assert measured == (row.name in done) != (f"- {row.task} {number} ({row.title})" in told)

    @pytest.mark.parametrize("name", sorted(students.done_rows(ROWS, RESULTS)))
    def test_each_cell_has_its_n_and_its_interval(self, name: str) -> None:
        row = next(r for r in ROWS if r.name == name)
        told = RESULTS[name]
        assert told["commands"] == list(row.commands)
        assert told["leaks"] == name.endswith("-slices")
        assert len(told["commit"]) >= 40
        columns = [c for table, task in students.TABLES.items() if task == row.task for c in students.COLUMNS[table]]
        for column in columns:
            score = column.of(told)
            if score is None:
                if told["leaks"]:  # slices dealt at random leave no scan whole
                    assert column.level == "scan"
                    assert not any(part["scans"] for part in told["sets"])
                else:
                    assert name == "cnn-3d"  # it tells whole scans only
                    assert column.level == "slice"
                continue
            assert score["n"] > 0
            shown = students.cell(column, told)
            assert f"{score['n']} s" in shown
            assert f"{score['patients']} patients" in shown
            if score["value"] is None:  # no slice was called bleeding: precision has no denominator
                assert shown.startswith("undefined")
            elif score["patients"] > 1:
                assert score["low"] <= score["value"] <= score["high"]
                assert " to " in shown

    def test_scores_of_all_rows_by_patient_are_of_the_same_slices(self) -> None:
        for task in students.TASKS:
            told = [RESULTS[n] for n in students.done_rows(ROWS, RESULTS) if RESULTS[n]["task"] == task]
            sets = {json.dumps(r["sets"], sort_keys=True) for r in told if not r["leaks"]}
            assert len(sets) <= 1
