"""Splits: by patient, stratified, the same for the same seed, written, read back and checked against the data."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hemolens.errors import ConfigError, InputError, OutputError
from hemolens.labels import SUBTYPE_NAMES
from hemolens.sources.datasets.cases import Case, SliceRecord
from hemolens.sources.datasets.opening import open_datasets
from hemolens.sources.splits import (
    SIDES,
    Fold,
    Split,
    group_of,
    make_split,
    read_split,
    slices_in,
    thin_split,
    write_split,
)

CLEAR = (0.0,) * 6


@dataclass(frozen=True, eq=False)
class Fake:
    """A data set of labels alone."""

    name: str
    cases: tuple[Case, ...]
    root: Path = Path()
    license: str = ""
    trainable: bool = True
    notes: tuple[Any, ...] = ()

    def volume(self, case: Case) -> Any:
        raise NotImplementedError

    def labels(self, case: Case) -> Any:
        raise NotImplementedError

    def files(self, case: Case) -> Any:
        raise NotImplementedError


def finding(*subtypes: int) -> tuple[float, ...]:
    return (1.0, *(1.0 if k in subtypes else 0.0 for k in range(1, 6)))


def fake(name: str, shown: list[tuple[float, ...]], slices: int = 3, first: int = 1) -> Fake:
    """One patient for each entry, who shows it in his last slice."""
    cases = []
    for number, findings in enumerate(shown, first):
        records = [SliceRecord(str(k), CLEAR if k < slices else findings, "empty") for k in range(1, slices + 1)]
        cases.append(Case(name, f"{number:03d}", "", tuple(records)))
    return Fake(name, tuple(cases))


def ordinary(name: str = "ct_ich", positives: int = 20, clear: int = 30) -> Fake:
    return fake(name, [finding(1 + k % 5) for k in range(positives)] + [CLEAR] * clear)


def members(fold: Fold) -> list[str]:
    return [m for side in SIDES for m in getattr(fold, side)]


@given(
    positives=st.integers(5, 40),
    clear=st.integers(0, 60),
    unknown=st.integers(0, 5),
    folds=st.integers(3, 5),
    seed=st.integers(0, 2**32),
)
def test_every_patient_stands_once_in_every_fold_and_once_in_test(
    positives: int, clear: int, unknown: int, folds: int, seed: int
) -> None:
    shown = [finding(1 + k % 5) for k in range(positives)] + [CLEAR] * clear + [(math.nan,) * 6] * unknown
    data = fake("a", shown)
    split = make_split([data], folds=folds, seed=seed)
    split.check([data])
    groups = sorted(case.group for case in data.cases)
    for fold in split.folds:
        assert sorted(members(fold)) == groups
    assert sorted(m for fold in split.folds for m in fold.test) == groups
    for number, fold in enumerate(split.folds):
        assert fold.validation == split.folds[(number + 1) % folds].test


@given(positives=st.integers(6, 40), clear=st.integers(0, 50), folds=st.integers(3, 6), seed=st.integers(0, 99))
def test_parts_are_stratified(positives: int, clear: int, folds: int, seed: int) -> None:
    data = ordinary(positives=positives, clear=clear)
    shows = {case.group: case.findings for case in data.cases}
    split = make_split([data], folds=folds, seed=seed)
    counts = [sum(shows[m][0] == 1.0 for m in fold.test) for fold in split.folds]
    assert max(counts) - min(counts) <= 1
    sizes = [len(fold.test) for fold in split.folds]
    assert max(sizes) - min(sizes) <= 1
    for k in range(1, len(SUBTYPE_NAMES) + 1):
        per_part = [sum(shows[m][k] == 1.0 for m in fold.test) for fold in split.folds]
        assert max(per_part) - min(per_part) <= 1


def test_hemorrhage_is_dealt_evenly_over_data_sets_too() -> None:
    both = [ordinary("a", positives=6, clear=7), ordinary("b", positives=3, clear=1)]
    shows = {case.group: case.findings[0] for d in both for case in d.cases}
    assert [sum(shows[m] for m in fold.test) for fold in make_split(both, folds=9).folds] == [1.0] * 9


def test_the_rarest_subtype_of_a_patient_counts() -> None:
    """Everyone has a subdural bleed; the three who also have an epidural one go to three parts."""
    data = fake("a", [finding(2)] * 12 + [finding(1, 2)] * 3 + [CLEAR] * 9)
    split = make_split([data], folds=3)
    epidural = {case.group for case in data.cases if case.findings[1] == 1.0}
    assert [len(epidural & set(fold.test)) for fold in split.folds] == [1, 1, 1]


def test_a_seed_gives_the_same_split_and_another_another() -> None:
    data = ordinary()
    assert make_split([data], seed=3) == make_split([data], seed=3)
    assert make_split([data], seed=3).folds != make_split([data], seed=4).folds
    turned = replace(data, cases=data.cases[::-1])
    assert make_split([turned], seed=3).folds == make_split([data], seed=3).folds


def test_data_sets_put_aside_stand_on_one_side_of_every_fold() -> None:
    sets = [ordinary("ct_ich"), ordinary("phe_sich", clear=0), ordinary("bhsd", clear=0)]
    split = make_split(sets, train_only=["phe_sich"], test_only=["bhsd"])
    for fold in split.folds:
        for side, here in (("train", True), ("validation", False), ("test", False)):
            assert any(m.startswith("phe_sich/") for m in getattr(fold, side)) is here
        assert sum(m.startswith("bhsd/") for m in fold.test) == 20
        assert not any(m.startswith("bhsd/") for m in (*fold.train, *fold.validation))
    with pytest.raises(ConfigError, match="no data set 'bhds' to put aside; here are: bhsd, ct_ich, phe_sich"):
        make_split(sets, test_only=["bhds"])
    with pytest.raises(ConfigError, match="bhsd cannot be on the train and the test side"):
        make_split(sets, train_only=["bhsd"], test_only=["bhsd"])
    with pytest.raises(ConfigError, match="there are 0 patients"):
        make_split(sets, train_only=[s.name for s in sets])


def test_people_in_two_data_sets_stay_together() -> None:
    both = [ordinary("ct_ich"), ordinary("ct_ich_nifti")]
    for fold in make_split(both).folds:
        sides = [{m.partition("/")[2] for m in getattr(fold, side)} for side in SIDES]
        assert not sides[0] & sides[1]
        assert not sides[0] & sides[2]
        assert not sides[1] & sides[2]


def test_people_of_a_test_set_are_trained_on_nowhere() -> None:
    """BHSD's scans are RSNA's."""
    rsna, bhsd = ordinary("rsna"), fake("bhsd", [finding(1)] * 5, first=4)
    split = make_split([rsna, bhsd], test_only=["bhsd"])
    for fold in split.folds:
        seen = {m.partition("/")[2] for m in (*fold.train, *fold.validation)}
        assert not seen & {m.partition("/")[2] for m in fold.test if m.startswith("bhsd/")}
        assert len(seen) > 30
    split.check([rsna, bhsd])


def test_several_scans_of_a_patient_stay_together() -> None:
    data = ordinary()
    doubled = Fake("ct_ich", tuple(replace(c, study=s) for c in data.cases for s in ("a", "b")))
    split = make_split([doubled])
    assert all("#" not in m and m.count("/") == 1 for fold in split.folds for m in members(fold))
    assert slices_in(doubled.cases[1], {"ct_ich/001"}) == (0, 1, 2)


def test_slices_as_the_unit_leak_and_say_so(tmp_path: Path) -> None:
    data = ordinary()
    split = make_split([data], unit="slice")
    assert split.leaks
    assert len(members(split.folds[0])) == 150
    assert all("#" in m for m in members(split.folds[0]))
    fold = split.fold(0)
    patients = [{group_of(m) for m in getattr(fold, side)} for side in SIDES]
    assert patients[0] & patients[2]
    case = data.cases[0]
    taken = [slices_in(case, set(getattr(fold, side))) for side in SIDES]
    assert sorted(i for which in taken for i in which) == [0, 1, 2]
    write_split(split, tmp_path / "s.json")
    assert "must not be reported" in json.loads((tmp_path / "s.json").read_text())["warning"]
    assert read_split(tmp_path / "s.json").leaks
    assert not make_split([data]).leaks


def test_a_split_is_written_once_and_read_back_equal(tmp_path: Path) -> None:
    split = make_split([ordinary()])
    path = tmp_path / "made" / "split.json"
    write_split(split, path)
    assert read_split(path) == split
    assert [p.name for p in path.parent.iterdir()] == ["split.json"]
    with pytest.raises(OutputError, match="this file exists"):
        write_split(split, path)
    write_split(make_split([ordinary()], seed=9), path, overwrite=True)
    assert read_split(path).seed == 9
    with pytest.raises(OutputError, match="cannot be written"):
        write_split(split, path / "below.json")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is no JSON"),
        ("[1, 2]", "is no split of hemolens"),
        ('{"format": "other"}', "is no split of hemolens"),
        ('{"format": "hemolens-split-1", "unit": "patient"}', "lacks a part of a split"),
        ('{"format": "hemolens-split-1", "unit": "patient", "seed": 0, "datasets": {}, "folds": [{"train": []}]}',
         "lacks a part"),
        ('{"format": "hemolens-split-1", "unit": "patient", "seed": 0, "datasets": {"a": ["1"]}, "folds": '
         '[{"train": ["a/1"], "validation": [], "test": ["a/1"]}]}', "names a/1 twice in one fold"),
        ('{"format": "hemolens-split-1", "unit": "patient", "seed": 0, "datasets": {"a": ["1"]}, "folds": '
         '[{"train": ["a/2"], "validation": [], "test": []}]}', "'a/2' is no patient of its data sets"),
        ('{"format": "hemolens-split-1", "unit": "slice", "seed": 0, "datasets": {"a": ["1"]}, "folds": '
         '[{"train": ["a/1"], "validation": [], "test": []}]}', "'a/1' is no slice"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_split(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(InputError, match=told) as error:
        read_split(path)
    assert str(error.value).startswith(str(path))
    assert "hemolens data split" in str(error.value)


def test_a_missing_split_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a split"):
        read_split(tmp_path / "absent.json")


def test_a_split_of_another_data_set_is_refused() -> None:
    split = make_split([ordinary("ct_ich")])
    with pytest.raises(ConfigError, match="made for ct_ich, not for bhsd"):
        split.check([ordinary("bhsd")])
    with pytest.raises(ConfigError, match=r"does not know ct_ich patients 051"):
        split.check([ordinary("ct_ich", clear=31)])
    with pytest.raises(ConfigError, match=r"names ct_ich patients that are not here: 050"):
        split.check([ordinary("ct_ich", clear=29)])
    both = make_split([ordinary("a"), ordinary("b")])
    with pytest.raises(ConfigError, match="also needs b, which is not here"):
        both.check([ordinary("a")])
    both.check([ordinary("a")], partial=True)


def test_a_fold_without_a_positive_is_refused() -> None:
    data = fake("a", [finding(1)] * 4 + [CLEAR] * 10)
    with pytest.raises(
        ConfigError, match=r"5 folds need at least 5 patients with hemorrhage; there are 14 patients, 4"
    ):
        make_split([data])
    clear = [f"a/{n:03d}" for n in range(5, 15)]
    bleeding = [f"a/{n:03d}" for n in range(1, 5)]
    patients = {"a": tuple(case.patient for case in data.cases)}
    fold = Fold(tuple(bleeding), tuple(clear[:5]), tuple(clear[5:]))
    with pytest.raises(ConfigError, match="Fold 0 of the split has no hemorrhage in its validation side"):
        Split("patient", 0, patients, (fold,)).check([data])


def test_too_few_folds_and_a_fold_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="at least 3 folds"):
        make_split([ordinary()], folds=2)
    split = make_split([ordinary()])
    for number in (-1, 5):
        with pytest.raises(ConfigError, match=rf"folds 0 to 4; there is no fold {number}"):
            split.fold(number)
    assert split.fold(4) is split.folds[4]


@pytest.mark.parametrize("unit", ["patient", "slice"])
def test_a_thin_split_keeps_a_few_of_each_data_set_and_moves_nobody(unit: str) -> None:
    datasets = [ordinary(), ordinary("rsna"), ordinary("phe_sich", positives=9, clear=0)]
    split = make_split(datasets, train_only=["phe_sich"], unit=unit)
    thin = thin_split(split, datasets, train=4, validation=3)
    positive = {case.group for d in datasets for case in d.cases if case.findings[0] == 1.0}
    for whole, few in zip(split.folds, thin.folds, strict=True):
        assert few.test == whole.test
        for side, names, most in (("train", ["ct_ich", "rsna", "phe_sich"], 4), ("validation", ["ct_ich", "rsna"], 3)):
            kept = getattr(few, side)
            assert set(kept) < set(getattr(whole, side))
            groups = {group_of(m) for m in kept}
            for name in names:
                own = {g for g in groups if g.startswith(f"{name}/")}
                assert len(own) == most
                assert len(own & positive) == (most if name == "phe_sich" else -(-most // 2))  # in turns, blood first
            assert {m for m in getattr(whole, side) if group_of(m) in groups} == set(kept)
    assert thin == thin_split(split, datasets, train=4, validation=3)
    assert thin.datasets == split.datasets
    thin.check(datasets)


def test_a_thin_split_needs_somebody_and_its_own_data() -> None:
    split = make_split([ordinary()])
    with pytest.raises(ConfigError, match="at least 1 patient"):
        thin_split(split, [ordinary()], train=0)
    with pytest.raises(ConfigError, match="made for ct_ich, not for rsna"):
        thin_split(split, [ordinary("rsna")], train=2)
    assert thin_split(split, [ordinary()]) == split
    assert thin_split(split, [ordinary()], train=1000, validation=1000, test=1000) == split


def test_the_real_data_split_evenly(data: Path) -> None:
    datasets = open_datasets(data)
    split = make_split(datasets, train_only=["phe_sich"], test_only=["bhsd"])
    split.check(datasets)
    shows = {case.group: case.findings for d in datasets for case in d.cases if d.name == "ct_ich"}
    counts = [np.nansum([shows[m] for m in fold.test if m in shows], axis=0) for fold in split.folds]
    assert max(c[0] for c in counts) - min(c[0] for c in counts) <= 1
    assert [len([m for m in fold.test if m in shows]) for fold in split.folds] == [13, 13, 13, 12, 12]
