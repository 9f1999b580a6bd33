"""Evaluation end to end on phantoms with known answers: what is scored, on whom, and what is said of it."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation_cases import Bleed, Scan, Tell, ToyPredictor, ToySet, scan, small_head, study
from hemolens.errors import ConfigError, InputError, OutputError
from hemolens.evaluation.folder import contents, write_evaluation
from hemolens.evaluation.gallery import GROUPS, MOST_TILES, Gallery
from hemolens.evaluation.operating import choose
from hemolens.evaluation.page import render
from hemolens.evaluation.plots import fold_figure
from hemolens.evaluation.results import csv_tables, headline, to_mapping, to_text
from hemolens.evaluation.run import NOTICE, Entry, Evaluation, Options, evaluate
from hemolens.evaluation.scored import Grid, score_case
from hemolens.evaluation.sides import Sides, check_folds, sides_of_model, sides_of_split
from hemolens.evaluation.summary import Measure
from hemolens.evaluation.tables import Scale, fit_scale, scan_table, slice_table
from hemolens.geometry import Stack
from hemolens.inference.calibrate import SOURCES, UNCALIBRATED
from hemolens.inference.registry import Thresholds
from hemolens.sources.datasets.cases import EDEMA, UNKNOWN, Case, SliceRecord
from hemolens.sources.splits import Fold, Split, write_split
from hemolens.volume import Volume
from predictions import volume_of

BOX = Bleed(range(3, 5), range(25, 31), range(30, 38))
TEST, VALIDATION = ("test",) * 8, ("validation",) * 8


def only(scan: Scan, predictor: ToyPredictor | None = None, sides: Sequence[str] = TEST, **kwargs: Any) -> Any:
    return score_case(predictor or ToyPredictor(), ToySet([scan]), scan.case, sides, **kwargs)


def fold_sides(number: int = 0, count: int = 12, parts: int = 3, unit: str = "patient") -> Sides:
    names = [f"toy/{i:03d}" for i in range(count)]
    split = [names[i::parts] for i in range(parts)]
    test, validation = split[number], split[(number + 1) % parts]
    train = [n for n in names if n not in test and n not in validation]
    members = {"train": train, "validation": validation, "test": test}
    return Sides("run", {side: frozenset(m) for side, m in members.items()}, unit, 0, number)  # type: ignore[arg-type]


def find(measures: Sequence[Measure], level: str, metric: str, finding: str = "any", point: str = "") -> Measure:
    (found,) = [m for m in measures if (m.level, m.metric, m.finding, m.point) == (level, metric, finding, point)]
    return found


@pytest.fixture(scope="module")
def written(result: Evaluation) -> dict[str, bytes]:
    return contents(result)


@pytest.fixture(scope="module")
def result() -> Evaluation:
    return evaluate([Entry(ToyPredictor(), fold_sides())], [study()], Options(draws=200))


class TestOneCase:
    def test_counts_are_those_of_the_whole_outline_on_the_source_grid(self) -> None:
        """Only some slices are brought back; the result is that of bringing all of them back."""
        head = small_head()
        flat = head.require_stack()
        # Stored from head to feet, rows toward the front: everything is turned on the way in and back.
        stack = Stack(
            flat.positions_mm[::-1] * (1, -1, 1), flat.row_directions, -flat.column_directions, flat.spacings_mm
        )
        low = replace(BOX, slices=range(1, 3))  # not as far from the top as from the bottom
        given = scan("1", true=(low,), volume=Volume(head.hu[::-1], stack, head.source))
        predictor = ToyPredictor()
        prepared = predictor.prepare(given.volume)
        assert prepared.orientation.flip_slices
        assert prepared.orientation.flip_rows
        found = prepared.restore(predictor.run(prepared).blood) >= 0.5
        true = given.labels > 0
        told = only(given, predictor)
        expected = np.stack([(found & true).sum((1, 2)), found.sum((1, 2)), true.sum((1, 2))], axis=1)
        np.testing.assert_array_equal(told.overlap, expected)
        assert expected[2, 0] > 30
        assert found.any(axis=(1, 2)).tolist() != found.any(axis=(1, 2))[::-1].tolist()
        np.testing.assert_array_equal(told.evidence[:, 0, SOURCES.index("head")] > -2, found.any(axis=(1, 2)))

    def test_volumes_are_milliliters_of_the_geometry(self) -> None:
        """6 x 8 pixels of 16 mm2 on two slices of 5 mm."""
        told = only(scan("1", true=(BOX,)))
        assert told.scan.true_ml == pytest.approx(2 * 6 * 8 * 16 * 5 / 1000)
        assert told.scan.found_ml == pytest.approx(told.scan.true_ml, rel=0.25)
        assert told.scan.hd95_mm <= 5.0
        assert (told.lesions.true, told.lesions.detected, told.lesions.false) == (1, 1, 0)
        assert told.grid.assumed == ""

    def test_what_is_not_known_is_not_scored(self) -> None:
        def states(k: int, bleeds: bool) -> Any:
            return {3: "pseudo", 4: "unknown"}.get(k, "empty")

        told = only(scan("1", true=(BOX,), states=states))
        assert np.isnan(told.overlap[[3, 4]]).all()
        assert np.isfinite(told.overlap[[0, 1, 2, 5, 6, 7]]).all()
        assert told.scan is None
        assert told.lesions is None
        assert np.isfinite(told.evidence[:, 0, SOURCES.index("outline")]).all()

    def test_edema_is_no_blood_and_unknown_pixels_do_not_count(self) -> None:
        given = scan("1", true=(BOX,))
        given.labels[3, 25:28, 30:38] = EDEMA
        given.labels[4] = np.where(given.labels[4] > 0, given.labels[4], UNKNOWN)
        given.labels[4, 25:27, 30:38] = UNKNOWN
        told = only(given)
        assert told.overlap[3, 2] == 3 * 8
        assert told.overlap[3, 1] > 30  # found over the edema: false
        assert told.overlap[4, 2] == 4 * 8
        assert told.overlap[4, 1] == told.overlap[4, 0]  # what is found on unknown pixels is neither right nor wrong

    def test_labels_are_read_only_where_blood_is_drawn(self) -> None:
        data = ToySet([scan("1")])
        told = score_case(ToyPredictor(), data, data.cases[0], TEST)
        assert data.read == []
        assert (told.overlap == 0).all()

    def test_a_faint_patch_is_scored_only_beside_a_sure_pixel(self) -> None:
        faint = Bleed(range(3, 5), range(38, 44), range(22, 28))
        given = scan("1", true=(BOX,))
        faint.paint(given.volume.hu, 57)  # 35 % likely, to this network
        counted = {}
        for seed in (None, 0.7):
            predictor = ToyPredictor()
            predictor.model = replace(predictor.model, thresholds=Thresholds(0.2, 0.5, seed=seed))
            counted[seed] = only(given, predictor).overlap[:, 1]
        plain = ToyPredictor()
        plain.model = replace(plain.model, thresholds=Thresholds(0.2, 0.5))
        np.testing.assert_array_equal(counted[0.7], only(scan("1", true=(BOX,)), plain).overlap[:, 1])
        assert (counted[None] - counted[0.7])[[3, 4]].min() > 20

    def test_subtypes_of_outlines_are_counted(self) -> None:
        told = only(scan("1", true=(BOX,), label=2))
        pixels = told.subtype_pixels.sum(axis=0)
        assert pixels[1].sum() == 2 * 6 * 8
        assert pixels[1, 4] == told.overlap[:, 0].sum()  # all that is outlined is called intraparenchymal
        assert pixels[[0, 2, 3, 4]].sum() == 0
        silent = only(scan("1", true=(BOX,), label=2), ToyPredictor("blood"))
        assert silent.subtype_pixels[..., 6].sum() == silent.overlap[:, 0].sum() > 0
        assert silent.subtype_pixels[..., 1:6].sum() == 0

    @pytest.mark.parametrize(
        ("name", "shape", "ml"), [("ct_ich", (650, 650), 5 * 0.39**2 / 1000), ("toy", (500, 500), np.nan)]
    )
    def test_pictures_without_spacing_get_an_assumed_pixel_that_is_told(
        self, name: str, shape: tuple[int, int], ml: float
    ) -> None:
        grid = Grid.of(volume_of((4, *shape), None), name)
        assert grid.voxel_ml == pytest.approx([ml] * 4, nan_ok=True)
        assert grid.pixel_mm2 == pytest.approx([0.39**2 if name == "ct_ich" else 0.25] * 4)
        assert grid.assumed

    @pytest.mark.parametrize("tell", ["mask", "blood", "slices", "scan", "sequence"])
    def test_every_kind_of_network_is_scored_for_what_it_tells(self, tell: Tell) -> None:
        told = evaluate([Entry(ToyPredictor(tell), fold_sides())], [study()], Options(draws=100)).sets[0]
        kinds = {(m.task, m.level) for m in told.measures}
        assert (("segmentation", "slice") in kinds) == (tell in ("mask", "blood"))
        assert (("clean", "scan") in kinds) == (tell in ("mask", "blood"))
        assert (("detection", "slice") in kinds) == (tell != "scan")
        assert ("detection", "scan") in kinds
        assert not any(np.isnan(m.value) and m.task == "detection" for m in told.measures)
        assert ("outlined_as_this_subtype" in {m.metric for m in told.measures}) == (tell == "mask")
        if tell == "blood":
            assert not any(m.finding != "any" and m.task == "detection" for m in told.measures)


class TestSides:
    SPLIT = Split("patient", 0, {"toy": ("000", "001", "002", "003")}, (
        Fold(("toy/000", "toy/001"), ("toy/002",), ("toy/003",)),
    ))  # fmt: skip

    def case(self, patient: str, slices: int = 3, dataset: str = "toy") -> Case:
        return Case(dataset, patient, "", tuple(SliceRecord(str(k), (0.0,) * 6, "empty") for k in range(slices)))

    def test_a_split_that_was_asked_for_leaves_out_whom_it_does_not_name(self) -> None:
        sides = Sides("file", {"test": ["toy/003"]}, closed=True)
        assert sides.of(self.case("003")) == ("test",) * 3
        assert sides.of(self.case("007")) == ("",) * 3

    def test_a_split_of_other_data_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="made for toy"):
            sides_of_split(self.SPLIT, 0, [study(4, "other")])  # type: ignore[list-item]
        with pytest.raises(ConfigError, match="no fold 3"):
            sides_of_split(self.SPLIT, 3, [study(4)])  # type: ignore[list-item]

    def test_shipped_models_name_their_patients_and_runs_keep_their_split(self, tmp_path: Path) -> None:
        model = ToyPredictor(card={"split": {"toy": {"train": ["000", "001"], "validation": ["002"]}}}).model
        told = {"unit": "patient", "seed": 0, "folds": 1, "fold": 0, "train": 2, "validation": 1, "test": 1}
        run = replace(model, card={"training": {"split": told}}, path=tmp_path / "model.onnx")
        assert sides_of_model(run).source == "none"  # moved away from its split: nothing is known
        write_split(self.SPLIT, tmp_path / "split.json")
        for sides in (sides_of_model(model), sides_of_model(run)):
            assert sides.trained == {"toy/000", "toy/001"}
            assert [sides.of(self.case(p))[0] for p in ("000", "002", "003", "777")] == [
                "train", "validation", "test", "test",
            ]  # fmt: skip
        assert (sides.source, sides.seed, sides.fold, sides.leaks) == ("run", 0, 0, False)
        assert sides_of_model(ToyPredictor().model).of(self.case("000")) == ("unknown",) * 3
        for wrong in ({"train": 3}, {"fold": 1}):
            with pytest.raises(InputError, match="not the split"):
                sides_of_model(replace(run, card={"training": {"split": {**told, **wrong}}}))

    def test_slices_of_a_leaky_split_stand_apart(self) -> None:
        sides = Sides("run", {"train": {"toy/000#0"}, "test": {"toy/000#2"}}, "slice", 0, 0)
        assert sides.leaks
        assert sides.of(self.case("000")) == ("train", "", "test")
        assert sides.trained == {"toy/000"}

    def test_folds_must_be_those_of_one_split(self) -> None:
        check_folds([fold_sides(0), fold_sides(1)])
        with pytest.raises(ConfigError, match="same fold"):
            check_folds([fold_sides(1), fold_sides(1)])
        with pytest.raises(ConfigError, match="different splits"):
            check_folds([fold_sides(0), replace(fold_sides(1), seed=1)])
        with pytest.raises(ConfigError, match="different splits"):
            check_folds([fold_sides(0), fold_sides(1, count=9)])
        with pytest.raises(ConfigError, match="know their split"):
            check_folds([fold_sides(0), Sides("none", {})])
        with pytest.raises(ConfigError, match="at least two"):
            check_folds([fold_sides(0)])


class TestOperatingPoints:
    def test_they_rest_on_validation_patients_alone(self, result: Evaluation) -> None:
        """Swapping every label of the test side leaves each threshold as it is."""
        data = study()
        for number in range(0, 12, 3):  # the test side of fold 0
            old = data.scans[number]
            records = tuple(replace(r, findings=(1 - r.findings[0], *r.findings[1:])) for r in old.case.slices)
            data.scans[number].case = replace(old.case, slices=records)  # type: ignore[misc]
        swapped = evaluate([Entry(ToyPredictor(), fold_sides())], [data], Options(draws=100))
        assert swapped.folds[0].points == result.folds[0].points
        before, after = (find(r.sets[0].measures, "slice", "brier_loss").value for r in (result, swapped))
        assert before != after

    def test_each_says_whom_it_was_chosen_on(self, result: Evaluation) -> None:
        main = result.folds[0].points[0]
        assert (main.level, main.finding, main.name, main.chosen_on) == ("slice", "any", "youden", "validation")
        assert main.patients == 4
        assert main.positives + main.negatives == 4 * 8

    def test_findings_with_one_class_get_none(self) -> None:
        told = [only(scan("1", true=(BOX,)), sides=VALIDATION), only(scan("2"), sides=VALIDATION)]
        points = choose("slice", slice_table(told, Scale("none")))
        assert {p.finding for p in points} == {"any", "intraparenchymal"}
        assert choose("scan", scan_table(told[1:], Scale("none"))) == []

    def test_without_validation_patients_one_half_is_taken_and_told(self) -> None:
        sides = Sides("file", {"test": {"toy/001", "toy/003"}}, closed=True)
        told = evaluate([Entry(ToyPredictor(), sides)], [study()], Options(draws=100))
        assert {(p.threshold, p.chosen_on) for p in told.folds[0].points} == {(0.5, "default")}
        assert any("no patients to choose thresholds on" in w for w in told.warnings)
        assert any("raw scores" in w for w in told.warnings)

    def test_answers_are_counted_at_the_fold_s_own_threshold(self) -> None:
        """Two models that differ by a constant give the same answers, though their thresholds differ."""
        entries = [
            Entry(ToyPredictor("slices"), fold_sides(0)),
            Entry(ToyPredictor("slices", shift=3.0), fold_sides(1)),
        ]
        told = evaluate(entries, [study()], Options(draws=100))
        both = [evaluate([Entry(ToyPredictor("slices"), e.sides)], [study()], Options(draws=100)) for e in entries]
        pooled = find(told.sets[0].measures, "slice", "accuracy", point="youden")
        alone = [find(r.sets[0].measures, "slice", "accuracy", point="youden") for r in both]
        assert pooled.n == sum(a.n for a in alone)
        assert pooled.value == pytest.approx(sum(a.value * a.n for a in alone) / pooled.n)


class TestEvaluate:
    def test_a_table_worked_by_hand(self) -> None:
        """One bleed found, one missed; one clean head with a false bleed, one without."""
        looks = Bleed(range(5, 6), range(35, 40), range(25, 30))
        data = ToySet([
            scan("a", true=(BOX,)), scan("b", true=(BOX,), looks=()), scan("c", looks=(looks,)), scan("d"),
        ])  # fmt: skip
        sides = Sides("file", {"test": {f"toy/{p}" for p in "abcd"}}, closed=True)
        (told,) = evaluate([Entry(ToyPredictor(), sides)], [data], Options(draws=100)).sets
        assert (told.patients, len(told.scans), len(told.slices)) == (4, 4, 32)
        assert find(told.measures, "scan", "roc_auc").value == pytest.approx(2.5 / 4)  # a over c and d, b level with d
        assert find(told.measures, "slice", "missed_wholly").value == 0.5
        assert find(told.measures, "lesion", "lesion_recall").value == 0.5
        assert find(told.measures, "lesion", "lesion_precision").value == 0.5
        assert find(told.measures, "lesion", "false_lesions_per_scan").value == 0.25
        clean = find(told.measures, "slice", "share_over_50_mm2")
        assert (clean.value, clean.n) == (pytest.approx(1 / 28), 28)
        assert find(told.measures, "scan", "mean_false_ml").value == pytest.approx(5 * 5 * 16 * 5 / 1000 / 2, rel=0.3)
        distance = find(told.measures, "slice", "mean_hd95_mm")
        assert (distance.n, distance.undefined) == (2, 2)
        found_ml = told.scans.ml[0, 0]
        assert find(told.measures, "scan", "bias_ml").value == pytest.approx((found_ml - 2 * 7.68) / 2)
        dice = told.scans.overlap[0]
        pooled = 2 * dice[0] / (dice[1] + 2 * dice[2])
        assert find(told.measures, "scan", "pooled_dice").value == pytest.approx(pooled)
        assert not [m for m in told.measures if m.task == "paper"]

    def test_edema_is_scored_where_it_is_drawn_even_beside_derived_blood(self) -> None:
        """Case a: derived blood, drawn edema, found; b: the same, missed; c: blood alone, as most data sets draw it."""
        blood, rim = Bleed(range(3, 5), range(28, 34), range(30, 36)), Bleed(range(3, 5), range(24, 34), range(26, 36))
        scans = []
        for name, seen in (("a", True), ("b", False), ("c", False)):
            made = scan(name, true=(blood,), states=lambda k, bleeds: "pseudo" if bleeds else "empty", label=6)
            if name != "c":
                ring = np.zeros(made.labels.shape, np.uint8)
                rim.paint(ring, 7)
                made.labels[(made.labels == 0) & (ring == 7)] = 7
            if seen:
                made.volume.hu[made.labels == 7] = 15
            scans.append(made)
        sides = Sides("file", {"test": {f"toy/{p}" for p in "abc"}}, closed=True)
        (told,) = evaluate([Entry(ToyPredictor("edema"), sides)], [ToySet(scans)], Options(draws=100)).sets
        edema = told.slices.edema
        assert np.isnan(edema[16:]).all()
        assert np.isfinite(edema[:16]).all()
        np.testing.assert_array_equal(edema[:16, 2], np.tile([0, 0, 0, 64, 64, 0, 0, 0], 2))
        both, found, true = edema[:16].T
        assert found[:8].sum() > 0
        assert found[8:].sum() == 0
        dice = next(m for m in told.measures if (m.task, m.metric) == ("edema", "pooled_dice"))
        assert (dice.n, dice.patients, dice.finding) == (4, 2, "edema")
        assert dice.value == pytest.approx(2 * both.sum() / (found[true > 0].sum() + true.sum()))
        assert both[3] / true[3] > 0.5
        assert not [m for m in told.measures if m.task == "segmentation"]  # derived blood is no yardstick

    def test_limits_of_agreement_are_those_of_the_plain_formula(self, result: Evaluation) -> None:
        from hemolens.evaluation.metrics import bland_altman

        table = result.sets[0].scans
        drawn = table.ml[:, 1] > 0
        told = bland_altman(*table.ml[drawn].T)
        for name in ("bias", "limit_low", "limit_high"):
            expected = getattr(told, name.removeprefix("limit_"))
            assert find(result.sets[0].measures, "scan", f"{name}_ml").value == pytest.approx(expected)

    def test_the_paper_s_protocol_leaves_patient_70_out(self) -> None:
        scans = [
            scan(p, true=(BOX,), looks=None if p == "049" else (), dataset="ct_ich") for p in ("049", "050", "070")
        ]
        (told,) = evaluate(
            [Entry(ToyPredictor(), Sides("none", {}))], [ToySet(scans, "ct_ich")], Options(draws=100)
        ).sets
        dice = find(told.measures, "slice", "paper_dice")
        both, found, true = told.slices.overlap[told.slices.overlap[:, 2] > 0][:2].T
        assert dice.value == pytest.approx(float((2 * both / (found + true)).mean()) / 2)
        assert (dice.n, dice.patients) == (4, 2)

    def test_test_and_validation_are_reported_apart_and_training_only_if_asked_for(self, result: Evaluation) -> None:
        assert [s.name for s in result.sets] == ["toy, test", "toy, validation"]
        assert {str(g) for s in result.sets for g in s.slices.group}.isdisjoint(fold_sides().members["train"])
        told = evaluate([Entry(ToyPredictor(), fold_sides())], [study()], Options(sides=("train",), draws=100))
        assert [s.name for s in told.sets] == ["toy, train"]
        assert told.folds[0].points[0].chosen_on == "validation"

    def test_some_patients_only(self) -> None:
        def groups(**options: Any) -> list[str]:
            told = evaluate([Entry(ToyPredictor(), fold_sides())], [study()], Options(draws=100, **options))
            assert any("Only some patients" in w for w in told.warnings)
            return sorted({str(g) for s in told.sets for g in s.slices.group})

        assert groups(patients=("003", "toy/006")) == ["toy/003", "toy/006"]
        assert groups(limit=1) == ["toy/000", "toy/001"]
        with pytest.raises(ConfigError, match=r"nothing to score.*099"):
            groups(patients=("099",))
        with pytest.raises(ConfigError, match="no side 'tset'"):
            groups(sides=("tset",))

    def test_a_case_that_cannot_be_read_is_told_and_the_rest_is_scored(self) -> None:
        data = study()
        data.broken = frozenset({"003"})
        told = evaluate([Entry(ToyPredictor(), fold_sides())], [data], Options(draws=100))
        assert told.partial
        assert told.skipped == ("toy/003: 003.dcm: cannot be read. Download it again.",)
        assert told.sets[0].patients == 3
        assert any("1 cases could not be read" in w for w in told.warnings)
        data.broken = frozenset(f"{i:03d}" for i in range(12))
        with pytest.raises(InputError, match="cannot be read"):
            evaluate([Entry(ToyPredictor(), fold_sides())], [data], Options(draws=100))

    def test_leaks_are_said_loudly_and_scans_are_not_scored(self) -> None:
        data = study(3)
        members = [f"toy/{p:03d}#{k + 1}" for p in range(3) for k in range(8)]
        members = {side: frozenset(members[i::3]) for i, side in enumerate(("train", "validation", "test"))}
        sides = Sides("file", members, "slice", 0, 0, closed=True)
        told = evaluate([Entry(ToyPredictor(), sides)], [data], Options(draws=100))
        assert told.warnings[0].startswith("LEAKY SPLIT")
        assert len(told.sets[0].slices) == 8
        assert len(told.sets[0].scans) == 0
        assert "LEAKY SPLIT" in to_text(told)
        assert 'class="loud">LEAKY SPLIT' in render(told, {})

    def test_patients_that_the_model_was_trained_on_are_told_whatever_split_is_asked_for(self) -> None:
        card = {"split": {"toy": {"train": ["000", "001"]}}}
        sides = replace(fold_sides(), source="file")
        told = evaluate([Entry(ToyPredictor(card=card), sides)], [study()], Options(draws=100))
        assert any("was trained on 2 of these patients" in w for w in told.warnings)
        told = evaluate([Entry(ToyPredictor(), Sides("none", {}))], [study(3)], Options(draws=100))
        assert any("may have seen these patients" in w for w in told.warnings)

    def test_probabilities_are_fitted_on_validation_patients(self, result: Evaluation) -> None:
        """Raw scores that are far too low are mended; ranks stay as they are."""
        low = evaluate([Entry(ToyPredictor("slices", shift=-9.0), fold_sides())], [study()], Options(draws=100))
        raw = replace(low.folds[0].scale, source="none", calibration=None)
        cases = [only(s, ToyPredictor("slices", shift=-9.0)) for s in study().scans]
        table = slice_table(cases, raw)
        worse = float(np.mean((table.probability[:, 0] - table.findings[:, 0]) ** 2))
        assert low.folds[0].scale.source == "validation"
        assert find(low.sets[0].measures, "slice", "brier_loss").value < 0.75 * worse
        same = evaluate([Entry(ToyPredictor("slices"), fold_sides())], [study()], Options(draws=100))
        values = [find(r.sets[0].measures, "slice", "roc_auc").value for r in (low, same)]
        assert values[0] == pytest.approx(values[1])

    def test_validation_patients_who_all_bleed_leave_raw_scores(self) -> None:
        with pytest.raises(ValueError, match="both"):
            fit_scale([only(scan("1"), sides=VALIDATION)])
        sides = Sides("file", {"validation": {"toy/000"}, "test": {"toy/001"}}, closed=True)
        told = evaluate([Entry(ToyPredictor(), sides)], [study()], Options(draws=100))
        assert told.folds[0].scale.source == "none"
        assert any("could not be fitted" in w for w in told.warnings)
        assert any("all alike" in w for w in told.warnings)

    def test_scans_are_let_go_while_others_are_scored(self) -> None:
        """Two scans at most are in memory: the one that is scored and the one that is read ahead."""
        most, alive = 0, weakref.WeakSet()  # type: ignore[var-annotated]
        data = study()

        def volume(case: Case) -> Volume:
            nonlocal most
            given = next(s.volume for s in data.scans if s.case is case)
            copy = replace(given, hu=given.hu.copy())
            alive.add(copy)
            most = max(most, len(alive))
            return copy

        data.volume = volume  # type: ignore[method-assign]
        evaluate([Entry(ToyPredictor(), fold_sides())], [data], Options(draws=100))
        assert most <= 3

    def test_progress_rises_to_the_end(self) -> None:
        told: list[tuple[str, float]] = []
        options = Options(draws=100, pictures=False)
        evaluate([Entry(ToyPredictor("slices"), fold_sides())], [study()], options, lambda *a: told.append(a))
        shares = [share for _, share in told]
        assert shares == sorted(shares)
        assert shares[0] == 0.0
        assert told[-1] == ("measuring", 1.0)


@pytest.fixture(scope="module")
def pooled() -> Evaluation:
    external = study(3, "outside")
    entries = [Entry(ToyPredictor("slices", shift=float(i)), fold_sides(i)) for i in range(3)]
    return evaluate(entries, [study(), external], Options(draws=100))


@pytest.mark.slow
class TestCrossValidation:
    def test_every_patient_is_tested_once_by_the_model_that_never_saw_it(self, pooled: Evaluation) -> None:
        inside = pooled.sets[0]
        assert (inside.name, inside.patients, len(inside.scans)) == ("toy, test", 12, 12)
        for fold, group in zip(inside.scans.fold, inside.scans.group, strict=True):
            assert group in fold_sides(int(fold)).members["test"]

    def test_data_outside_the_split_is_scored_by_every_fold_and_patients_count_once(self, pooled: Evaluation) -> None:
        outside = pooled.sets[1]
        assert (outside.name, outside.patients, len(outside.scans)) == ("outside, test", 3, 9)
        assert find(outside.measures, "slice", "brier_loss").patients == 3

    def test_each_fold_is_told_alone_too(self, pooled: Evaluation) -> None:
        assert [(n, d) for n, d, _ in pooled.by_fold] == [(f, d) for d in ("toy", "outside") for f in range(3)]
        assert fold_figure(pooled) is not None
        rows = list(csv.DictReader(io.StringIO(csv_tables(pooled)["metrics.csv"])))
        assert {row["fold"] for row in rows} == {"all", "0", "1", "2"}


@pytest.mark.slow
class TestOutput:
    def test_json_is_strict_and_holds_what_was_measured(self, result: Evaluation, written: dict[str, bytes]) -> None:
        def refuse(name: str) -> None:
            raise AssertionError(name)

        told = json.loads(written["metrics.json"], parse_constant=refuse)
        assert told == json.loads(json.dumps(to_mapping(result)))
        assert told["notice"] == NOTICE
        assert told["models"][0]["split"]["test_members"] == 4
        first = told["sets"][0]
        assert (first["dataset"], first["side"], first["patients"], first["slices"]) == ("toy", "test", 4, 32)
        assert sum(first["masks"].values()) == 32
        for row in first["measures"]:
            assert {"value", "low", "high", "n", "unit", "patients", "undefined"} <= set(row)
            if row["low"] is not None and row["value"] is not None:
                assert row["low"] <= row["high"]
        for row in first["confusion"]:
            parts = ("true_positive", "false_positive", "false_negative", "true_negative")
            assert sum(row[part] for part in parts) == (32 if row["level"] == "slice" else 4)
        for diagram in first["reliability"]:
            assert sum(b["count"] for b in diagram["bins"]) == (32 if diagram["level"] == "slice" else 4)

    def test_tables_can_be_counted_again(self, result: Evaluation, written: dict[str, bytes]) -> None:
        files = written
        rows = [r for r in csv.DictReader(io.StringIO(files["slices.csv"].decode())) if r["side"] == "validation"]
        drawn = [r for r in rows if r["mask"] == "drawn"]
        pooled = 2 * sum(int(r["both_px"]) for r in drawn) / sum(int(r["found_px"]) + int(r["true_px"]) for r in drawn)
        assert find(result.sets[1].measures, "slice", "pooled_dice").value == pytest.approx(pooled)
        dice = np.mean([float(r["dice"]) for r in drawn])
        assert find(result.sets[1].measures, "slice", "mean_dice").value == pytest.approx(dice, abs=1e-5)
        scans = list(csv.DictReader(io.StringIO(files["scans.csv"].decode())))
        assert len(scans) == 8
        assert {r["true_any"] for r in scans} == {"0", "1"}

    def test_the_page_stands_alone_and_says_what_it_is(self, result: Evaluation, written: dict[str, bytes]) -> None:
        page = written["report.html"].decode()
        assert NOTICE in page
        assert not re.findall(r"""(?:src|href)=["'](?!data:)[^"'#]""", page)
        assert "<script" not in page
        for case_set in result.sets:
            for title, measure in headline(case_set.measures):
                assert title.split(" (")[0].replace("'", "&#39;") in page
                assert measure.value >= 10 or f">{measure.value:.2f}<" in page
        assert "youden" in page

    def test_names_out_of_data_are_escaped(self) -> None:
        data = study(3, "<b>set")
        told = evaluate([Entry(ToyPredictor(), Sides("none", {}))], [data], Options(draws=100))
        page = render(told, {})
        assert "<b>set" not in page
        assert "&lt;b&gt;set" in page

    def test_figures_are_pictures_and_no_window_system_is_touched(self, written: dict[str, bytes]) -> None:
        figures = {name: data for name, data in written.items() if name.endswith(".png")}
        assert all(data.startswith(b"\x89PNG") for data in figures.values())
        names = {name.removeprefix("figures/") for name in figures if name.startswith("figures/")}
        assert names == {
            "roc.png", "precision_recall.png", "roc_subtypes.png", "confusion.png", "reliability.png", "dice.png",
            "bland_altman.png", "clean.png", "subtype_outlines.png",
        }  # fmt: skip
        code = "import sys, hemolens.evaluation.folder; assert 'matplotlib.pyplot' not in sys.modules"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_the_folder_is_written_whole_and_replaced_only_if_asked(
        self, result: Evaluation, written: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("hemolens.evaluation.folder.contents", lambda evaluation: written)
        out = tmp_path / "out"
        files = write_evaluation(result, out)
        assert files["report"].is_file()
        assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == sorted(written)
        with pytest.raises(OutputError, match="not empty"):
            write_evaluation(result, out)
        write_evaluation(result, out, overwrite=True)
        (out / "thesis.docx").write_text("mine")
        with pytest.raises(OutputError, match=r"thesis\.docx"):
            write_evaluation(result, out, overwrite=True)


def kept(count: int = 12) -> Gallery:
    gallery, data = Gallery(True), study(count)
    for case in data.cases:
        score_case(ToyPredictor(), data, case, TEST, gallery.see)
    return gallery


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    return kept()


class TestGallery:
    def test_it_is_bounded_and_comes_out_the_same_every_time(self, gallery: Gallery) -> None:
        most = {name: count for name, _, count in GROUPS}
        told = [[(name, [p.id for p in pictures]) for name, _, pictures in g.pictures()] for g in (gallery, kept())]
        assert told[0] == told[1]
        assert all(len(ids) <= most[name] for name, ids in told[0])
        ids = [i for _, names in told[0] for i in names]
        assert len(ids) == len(set(ids))

    def test_the_best_the_worst_and_the_false_are_those(self, gallery: Gallery) -> None:
        groups = {name: pictures for name, _, pictures in gallery.pictures()}
        best, worst = ([p.dice for p in groups[name]] for name in ("best", "worst"))
        assert best == sorted(best, reverse=True)
        assert max(worst) < min(best)
        assert all(p.true is not None and not p.true.any() and p.found.any() for p in groups["false"])

    def test_the_montage_is_the_scan_with_most_blood(self, gallery: Gallery) -> None:
        """Patient 11 has the largest bleed; its eight slices are shown."""
        scan = gallery.montage()
        assert scan.id == "toy/011"
        assert [p.id for p in scan.tiles] == [f"toy/011#{k + 1}" for k in range(8)]
        assert len(scan.tiles) <= MOST_TILES

    def test_masks_are_drawn_where_they_are(self) -> None:
        from hemolens.evaluation.drawing import FOUND_RGB, TRUE_RGB, montage, panels

        gallery = Gallery(True)
        data = ToySet([scan("1", true=(BOX,))])
        score_case(ToyPredictor(), data, data.cases[0], TEST, gallery.see)
        picture = gallery.pictures()[0][2][0]
        size = picture.gray.shape[0]
        image = panels(picture)
        assert image.shape == (size, 3 * size + 8, 3)
        plain, truth, prediction = (image[:, i * (size + 4) : i * (size + 4) + size] for i in range(3))
        assert (plain[..., 0] == plain[..., 1]).all()
        for part, color, mask in ((truth, TRUE_RGB, picture.true), (prediction, FOUND_RGB, picture.found)):
            marked = (part == color).all(axis=-1)
            assert marked.any()
            assert not marked[~mask].any()
            assert (part[~mask] == plain[~mask]).all()
        assert montage(gallery.montage()).ndim == 3


def test_an_uncalibrated_card_is_told_from_a_calibrated_one() -> None:
    from hemolens.inference.registry import load_model

    assert not ToyPredictor().model.calibrated
    assert ToyPredictor().model.calibration == UNCALIBRATED
    assert load_model().calibrated
