"""Self-training: which derived outlines are trusted, and that they come back as pseudo-masks and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs hemolens[train]")

from evaluation_cases import Bleed, ToyPredictor, ToySet, scan
from hemolens.errors import HemolensError, InputError
from hemolens.sources.datasets.cases import UNKNOWN, UNKNOWN_SUBTYPE, SliceRecord
from hemolens.sources.datasets.pseudo import INDEX, PseudoMasked, read_pseudo, with_pseudo
from hemolens.training.pseudo_folder import write_pseudo
from hemolens.training.self_training import SelfTrainingConfig, allowed, trusted

SIDE = 224
NAN = float("nan")
CONFIG = SelfTrainingConfig()
ANY_KIND = ("epidural", "subdural", "subarachnoid", "intraparenchymal", "intraventricular")


def head() -> tuple[np.ndarray, np.ndarray]:
    """A slice with even brain in a skull, and the inside of it."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    radius = np.hypot(y, x)
    inside = radius < 95
    return np.where(inside, 113, np.where(radius < 103, 255, 0)).astype(np.uint8), inside


def disk(row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.hypot(y - row, x - column) < radius


DEEP, AT_SKULL = disk(112, 112, 9), disk(112, 24, 6)


@pytest.mark.parametrize(
    ("where", "peak", "gray", "kinds", "kept"),
    [
        (DEEP, 0.9, 170, ("intraparenchymal",), True),
        (DEEP, 0.55, 170, ("intraparenchymal",), False),  # no sure core
        (DEEP, 0.9, 115, ("intraparenchymal",), False),  # no brighter than brain
        (DEEP, 0.9, 170, ("subdural",), False),  # nothing subdural lies there
        (DEEP, 0.9, 170, ("subdural", "intraparenchymal"), True),
        (DEEP, 0.9, 170, ANY_KIND, True),
        (AT_SKULL, 0.9, 170, ("epidural",), True),
        (disk(112, 21, 4.5), 0.9, 170, ("intraventricular",), False),
        (disk(112, 112, 1.5), 0.9, 170, ("intraparenchymal",), False),  # too small
    ],
)
def test_which_outlines_are_trusted(where: np.ndarray, peak: float, gray: int, kinds: tuple, kept: bool) -> None:
    crop, inside = head()
    crop[where & inside] = gray
    probability = np.where(where, peak, 0.01).astype(np.float32)
    found = trusted(probability, crop, inside, kinds, CONFIG)
    assert found.any() == kept
    if kept:
        truth = where & inside
        assert (found & truth).sum() * 2 / (found.sum() + truth.sum()) > 0.9


def test_an_edge_moves_to_half_the_gray_step_and_no_further_than_a_little() -> None:
    crop, inside = head()
    blood = disk(112, 112, 12)
    crop[blood] = 180
    generous = disk(112, 112, 13.8)
    found = trusted(np.where(generous, 0.8, 0.0).astype(np.float32), crop, inside, ANY_KIND, CONFIG)
    assert abs(int(found.sum()) - int(blood.sum())) < 0.06 * blood.sum()
    mean = trusted(np.where(disk(112, 112, 6), 0.8, 0.0).astype(np.float32), crop, inside, ANY_KIND, CONFIG)
    assert mean.sum() < disk(112, 112, 9).sum()  # it may not grow over all of what is bright


def test_where_the_skull_is_open_no_place_is_asked_for() -> None:
    crop, _ = head()
    crop[DEEP] = 170
    probability = np.where(DEEP, 0.9, 0.0).astype(np.float32)
    assert trusted(probability, crop, np.ones_like(DEEP), ("subdural",), CONFIG).any()


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ((1, 0, 1, 0, 0, 0), ("subdural",)),
        ((1, 0, 1, 0, 1, NAN), ("subdural", "intraparenchymal")),
        ((1, NAN, NAN, 0, 0, 0), ("epidural", "subdural")),
    ],
)
def test_a_label_says_what_is_allowed(findings: tuple, expected: tuple) -> None:
    assert allowed(SliceRecord("1", findings, "unknown")) == expected


def data() -> ToySet:
    """Scan a bleeds on two slices without a mask, b looks bloody but is clean, c is drawn, d is not in training."""
    box = Bleed(range(3, 5), range(25, 33), range(30, 38))
    made = []
    for name, true, state in (
        ("a", (box,), "unknown"),
        ("b", (), "empty"),
        ("c", (box,), "drawn"),
        ("d", (box,), "unknown"),
    ):
        one = scan(name, true=true, looks=(box,), states=lambda k, bleeds, s=state: s if bleeds else "empty")
        records = tuple(
            replace(r, findings=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0)) if r.mask_state == "unknown" else r
            for r in one.case.slices
        )
        made.append(replace_case(one, records))
    return ToySet(made)


def replace_case(one, records):
    return type(one)(replace(one.case, slices=records), one.volume, one.labels)


def derived(tmp_path: Path) -> tuple[ToySet, dict]:
    source = data()
    return source, write_pseudo(ToyPredictor(), [source], {"toy/a", "toy/b", "toy/c"}, tmp_path / "p", CONFIG)


def test_bleeding_slices_of_the_training_side_get_masks_and_nothing_else(tmp_path: Path) -> None:
    source, index = derived(tmp_path)
    assert {name: entry["slices"] for name, entry in index["cases"].items()} == {"toy/a": ["4", "5"]}
    assert index["origin"]["slices_outlined"] == 2
    assert index["origin"]["bleeding_slices_without_mask"] == {"toy": 2}
    (masked,) = with_pseudo([source], read_pseudo(tmp_path / "p"))
    assert isinstance(masked, PseudoMasked)
    a, b, c, d = masked.cases
    assert [r.mask_state for r in a.slices] == ["empty"] * 3 + ["pseudo"] * 2 + ["empty"] * 3
    for case, before in zip((b, c, d), source.cases[1:], strict=True):
        assert case.slices == before.slices
    labels = masked.labels(a)
    true = np.zeros(labels.shape[1:], bool)
    true[25:33, 30:38] = True
    for k in (3, 4):
        found = labels[k] == 4  # the one subtype of the slice
        assert (found & true).sum() * 2 / (found.sum() + true.sum()) > 0.7
        assert set(np.unique(labels[k])) <= {0, 4, UNKNOWN}
    assert not labels[[0, 1, 2, 5, 6, 7]].any()
    np.testing.assert_array_equal(masked.labels(c), source.labels(source.cases[2]))
    assert masked.files(a)[-1] == tmp_path / "p" / "toy_a.npz"
    assert np.array_equal(masked.volume(a).hu, source.volume(source.cases[0]).hu)


def test_several_subtypes_leave_the_subtype_of_a_pixel_open(tmp_path: Path) -> None:
    source = data()
    first = source.scans[0]
    records = tuple(
        replace(r, findings=(1.0, 0.0, 1.0, 0.0, 1.0, 0.0)) if r.mask_state == "unknown" else r
        for r in first.case.slices
    )
    source = ToySet([replace_case(first, records)])
    write_pseudo(ToyPredictor(), [source], {"toy/a"}, tmp_path / "p", CONFIG)
    (masked,) = with_pseudo([source], read_pseudo(tmp_path / "p"))
    assert set(np.unique(masked.labels(masked.cases[0]))) - {0, UNKNOWN} == {UNKNOWN_SUBTYPE}


def test_a_folder_of_other_data_or_of_known_masks_is_refused(tmp_path: Path) -> None:
    source, _ = derived(tmp_path)
    folder = read_pseudo(tmp_path / "p")
    with pytest.raises(InputError, match="toy/a, which is not in the data"):
        with_pseudo([ToySet(source.scans[1:])], folder)
    known = replace_case(source.scans[0], tuple(replace(r, mask_state="drawn") for r in source.cases[0].slices))
    with pytest.raises(InputError, match="no slice of unknown mask"):
        with_pseudo([ToySet([known])], folder)


@pytest.mark.parametrize(("content", "told"), [(None, "holds no"), ("{", "is not JSON"), ('{"format": 1}', "form")])
def test_a_wrong_folder_is_told(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / INDEX).write_text(content)
    with pytest.raises(InputError, match=told):
        read_pseudo(tmp_path)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    source, _ = derived(tmp_path)
    (tmp_path / "p" / "toy_a.npz").write_bytes(b"damaged")
    (masked,) = with_pseudo([source], read_pseudo(tmp_path / "p"))
    with pytest.raises(InputError, match="cannot be read"):
        masked.labels(masked.cases[0])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine.txt").write_text("mine")
    with pytest.raises(HemolensError, match="not empty"):
        write_pseudo(ToyPredictor(), [data()], {"toy/a"}, tmp_path / "p", CONFIG)
    assert (tmp_path / "p" / "mine.txt").read_text() == "mine"


def test_the_provenance_says_by_which_model(tmp_path: Path) -> None:
    from hemolens.sources.splits import Fold, Split
    from hemolens.training.provenance import data_told

    source, index = derived(tmp_path)
    masked = with_pseudo([source], read_pseudo(tmp_path / "p"))
    split = Split("patient", 0, {"toy": ("a", "b", "c", "d")}, (Fold(("toy/a",), ("toy/b",), ("toy/d",)),))
    told = data_told(masked, split, 0)["datasets"][0]
    assert told["pseudo_masks"] == json.loads(json.dumps(index["origin"]))
    assert told["pseudo_masks"]["model"] == "toy-net"
    assert told["fingerprint"] != data_told([source], split, 0)["datasets"][0]["fingerprint"]


@pytest.mark.parametrize("wrong", [{"low": 0.7}, {"suspected": 0.5}, {"smallest": 0}, {"near_skull": 0.0}])
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        SelfTrainingConfig(**wrong)
