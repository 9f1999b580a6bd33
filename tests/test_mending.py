"""Mending derived masks: what a network adds, what it leaves in doubt, and what stays as it was."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs hemolens[train]")

from evaluation_cases import Bleed, Scan, ToyPredictor, ToySet, scan
from hemolens.errors import InputError
from hemolens.inference.registry import DEFAULT_MODEL
from hemolens.sources.datasets.cases import EDEMA, NO_FINDINGS, UNKNOWN, UNKNOWN_FINDINGS, UNKNOWN_SUBTYPE, MaskState
from hemolens.sources.datasets.phe_sich import PSEUDO_FINDINGS
from hemolens.sources.datasets.pseudo import INDEX, read_pseudo, with_pseudo
from hemolens.sources.splits import Fold, Split, write_split
from hemolens.training.mending import Mended, mend_masks
from hemolens.training.pseudo_folder import write_pseudo
from hemolens.training.self_training import SelfTrainingConfig

SIDE = 224
CONFIG = SelfTrainingConfig(mend=True)
KNOWN_AT, BESIDE_AT, FAR_AT = (112, 112), (112, 128), (112, 170)
PSEUDO: MaskState = "pseudo"
EMPTY: MaskState = "empty"
UNSURE: MaskState = "unknown"


def disk(place: tuple[int, int], radius: float = 6.0) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.hypot(y - place[0], x - place[1]) < radius


def mended(
    states: list[MaskState],
    looks: dict[int, list[tuple[np.ndarray, float]]],
    numbers: list[int] | None = None,
    known: int = 0,
    gray: int = 170,
) -> Mended:
    """Mend a scan of even brain: a disk of blood is known on slice `known`, and `looks` like blood so surely."""
    probability = np.full((len(states), SIDE, SIDE), 0.01, dtype=np.float32)
    crops = np.full((len(states), SIDE, SIDE), 113, dtype=np.uint8)
    inside = np.broadcast_to(disk((112, 112), 95), crops.shape)
    truth = np.zeros(crops.shape, dtype=bool)
    truth[known] = disk(KNOWN_AT)
    for k, seen in {known: [(truth[known], 0.95)], **looks}.items():
        for where, peak in seen:
            probability[k][where], crops[k][where] = peak, gray
    probability[known][truth[known]], crops[known][truth[known]] = 0.95, 170
    return mend_masks(probability, crops, inside, truth, states, numbers or list(range(len(states))), CONFIG)


@pytest.mark.parametrize(
    ("place", "peak", "added", "doubtful"),
    [
        (BESIDE_AT, 0.9, True, False),  # a drop beside the hematoma
        (BESIDE_AT, 0.5, False, True),  # of which the network is not sure
        (FAR_AT, 0.9, False, True),  # what hangs together with nothing may be blood, and may be none
        (FAR_AT, 0.3, False, False),  # next to nothing is suspected
    ],
)
def test_beside_a_known_bleed(place: tuple[int, int], peak: float, added: bool, doubtful: bool) -> None:
    drop = disk(place)
    found = mended([PSEUDO], {0: [(drop, peak)]})
    assert found.states == (PSEUDO,)
    assert found.added[0][drop].mean() == pytest.approx(float(added), abs=0.1)
    assert found.doubt[0][drop].mean() == pytest.approx(float(doubtful), abs=0.1)
    assert not found.added[0][disk(KNOWN_AT)].any()
    assert not (found.added | found.doubt)[0][~drop & ~disk(KNOWN_AT, 9)].any()


def test_around_a_known_bleed_its_edge_stays_taught() -> None:
    faint = mended([PSEUDO], {0: [(disk(KNOWN_AT, 7), 0.5)]}, gray=120)
    assert not faint.added.any()
    assert not faint.doubt.any()
    wide = mended([PSEUDO], {0: [(disk(KNOWN_AT, 14), 0.5)]}, gray=116)
    assert wide.doubt[0][disk(KNOWN_AT, 13) & ~disk(KNOWN_AT, 9)].all()


@pytest.mark.parametrize(
    ("place", "peak", "state"),
    [
        (KNOWN_AT, 0.9, PSEUDO),  # the bleed fades out on the next slice
        (KNOWN_AT, 0.5, UNSURE),  # or seems to
        (KNOWN_AT, 0.3, EMPTY),
        (FAR_AT, 0.9, EMPTY),  # no bleed that goes on: it looks like one and is none, which is what has to be taught
    ],
)
def test_a_slice_on_which_nothing_was_marked(place: tuple[int, int], peak: float, state: MaskState) -> None:
    for numbers, expected in (([4, 5], state), ([4, 6], EMPTY)):  # a slice lacks in between: no neighbors
        found = mended([PSEUDO, EMPTY], {1: [(disk(place, 5), peak)]}, numbers)
        assert found.states == (PSEUDO, expected)
        assert found.added[1].any() == (expected == PSEUDO)
        assert not found.doubt[1].any()


def test_a_bleed_is_followed_through_any_number_of_slices_both_ways() -> None:
    drifting = {k: [(disk((112, 112 + 4 * (k - 3)), 5), 0.9)] for k in (0, 1, 2, 4, 5)}
    found = mended([EMPTY, EMPTY, UNSURE, PSEUDO, EMPTY, EMPTY], drifting, known=3)
    assert found.states == (PSEUDO,) * 6
    assert found.added.any(axis=(1, 2)).tolist() == [True, True, True, False, True, True]
    broken = mended([EMPTY, EMPTY, UNSURE, PSEUDO], {k: drifting[k] for k in (0, 1)}, known=3)
    assert broken.states == (EMPTY, EMPTY, UNSURE, PSEUDO)


def test_a_slice_that_likely_bleeds_is_outlined_where_the_bleed_goes_on_and_in_doubt_elsewhere() -> None:
    found = mended([PSEUDO, UNSURE], {1: [(disk(KNOWN_AT), 0.9), (disk(FAR_AT), 0.9), (disk((70, 112)), 0.2)]})
    assert found.states == (PSEUDO, PSEUDO)
    assert found.added[1][disk(KNOWN_AT)].all()
    assert not found.added[1][disk(FAR_AT)].any()
    assert found.doubt[1][disk(FAR_AT)].all()
    assert found.doubt[1][disk((70, 112))].all()
    assert mended([PSEUDO, UNSURE], {1: [(disk(FAR_AT), 0.9)]}).states == (PSEUDO, UNSURE)


ALONE = Bleed(range(3, 4), range(42, 48), range(24, 30))


def source() -> ToySet:
    """Scan a: half of a bleed is derived on slices 4 and 5, slice 6 shows more, and slice 4 shows something by itself;
    b looks bloody and has no such mask."""
    whole, half = Bleed(range(3, 6), range(22, 34), range(30, 38)), Bleed(range(3, 5), range(22, 28), range(30, 38))
    rim = Bleed(range(3, 4), range(28, 34), range(30, 32))
    one = scan("a", true=(half,), looks=(whole, ALONE), label=UNKNOWN_SUBTYPE)
    rim.paint(one.labels, EDEMA)
    states = {4: PSEUDO, 5: PSEUDO, 8: UNSURE}
    known = {PSEUDO: PSEUDO_FINDINGS, EMPTY: NO_FINDINGS, UNSURE: UNKNOWN_FINDINGS}
    records = tuple(
        replace(r, mask_state=states.get(k, EMPTY), findings=known[states.get(k, EMPTY)])
        for k, r in enumerate(one.case.slices, 1)
    )
    one.labels[7] = UNKNOWN
    other = scan("b", looks=(whole,))
    return ToySet([Scan(replace(one.case, slices=records), one.volume, one.labels), other])


def test_a_scan_is_mended_on_its_own_grid(tmp_path: Path) -> None:
    data = source()
    index = write_pseudo(ToyPredictor(), [data], {"toy/a", "toy/b"}, tmp_path / "p", CONFIG)
    assert list(index["cases"]) == ["toy/a"]
    assert index["cases"]["toy/a"]["slices"] == ["4", "5", "6"]
    assert index["origin"]["slices_mended"] == 3
    (told,) = with_pseudo([data], read_pseudo(tmp_path / "p"))
    case = told.cases[0]
    assert [r.mask_state for r in case.slices] == [EMPTY] * 3 + [PSEUDO] * 3 + [EMPTY, UNSURE]
    assert case.slices[5].findings == pytest.approx(PSEUDO_FINDINGS, nan_ok=True)
    labels, before = told.labels(case), data.labels(data.cases[0])
    where = np.zeros(labels.shape[1:], dtype=bool)
    where[22:34, 30:38] = True
    for k in (3, 4, 5):
        blood = labels[k] == UNKNOWN_SUBTYPE
        true = where & (before[k] != EDEMA)
        assert 2 * (blood & true).sum() / (blood.sum() + true.sum()) > 0.8
    assert np.array_equal(labels[3] == EDEMA, before[3] == EDEMA)
    assert (labels[3, 43:47, 25:29] == UNKNOWN).all()
    assert not (labels[4:6] == UNKNOWN).any()
    assert np.array_equal(labels[[0, 1, 2, 6, 7]], before[[0, 1, 2, 6, 7]])
    assert told.cases[1].slices == data.cases[1].slices


def test_without_being_asked_nothing_is_mended(tmp_path: Path) -> None:
    index = write_pseudo(ToyPredictor(), [source()], {"toy/a"}, tmp_path / "p", SelfTrainingConfig())
    assert not index["cases"]
    assert "slices_mended" not in index["origin"]


@pytest.mark.parametrize("state", ["drawn", "empty"])
def test_a_mask_that_was_drawn_and_a_slice_known_to_be_clean_are_never_replaced(tmp_path: Path, state: str) -> None:
    data = source()
    write_pseudo(ToyPredictor(), [data], {"toy/a"}, tmp_path / "p", CONFIG)
    first = data.scans[0]
    records = tuple(replace(r, mask_state=state) if r.mask_state == PSEUDO else r for r in first.case.slices)
    changed = ToySet([Scan(replace(first.case, slices=records), first.volume, first.labels)])
    with pytest.raises(InputError, match="toy/a#4, which is no slice of unknown mask"):
        with_pseudo([changed], read_pseudo(tmp_path / "p"))


def test_what_is_known_must_fit_the_slices(tmp_path: Path) -> None:
    write_pseudo(ToyPredictor(), [source()], {"toy/a"}, tmp_path / "p", CONFIG)
    told = json.loads((tmp_path / "p" / INDEX).read_text())
    told["cases"]["toy/a"]["findings"].pop()
    (tmp_path / "p" / INDEX).write_text(json.dumps(told))
    with pytest.raises(InputError, match="is not of the form"):
        read_pseudo(tmp_path / "p")


@pytest.mark.slow
def test_a_published_scan_from_the_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PHE-SICH 0060: the derived masks leave out the paler half of a layered hematoma on slices 14 to 16."""
    from hemolens.cli.main import main
    from hemolens.sources.datasets.opening import open_datasets

    root = tmp_path / "phe_sich"
    for folder in ("images", "blood_pseudo", "oedema"):
        (root / folder).mkdir(parents=True)
        for file in (data / "phe_sich" / folder).glob("0060_*"):
            shutil.copy(file, root / folder)
    rows = (data / "phe_sich" / "slices.csv").read_text().splitlines(keepends=True)
    (root / "slices.csv").write_text("".join(r for k, r in enumerate(rows) if not k or r.startswith("0060_")))
    split = tmp_path / "split.json"
    told = {"train": ["phe_sich/0060"], "validation": [], "test": []}
    write_split(Split("patient", 0, {"phe_sich": ("0060",)}, (Fold(**{k: tuple(v) for k, v in told.items()}),)), split)
    out = tmp_path / "mended"
    line = ["data", "pseudo", DEFAULT_MODEL, "--data", str(root), "--split", str(split), "-o", str(out), "--mend"]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "masks for 0 of 0 bleeding slices without one" in said
    assert re.search(r"[1-9]\d* slices of scans with derived masks are told anew", said)

    (before,) = open_datasets(root, ("phe_sich",))
    (after,) = with_pseudo([before], read_pseudo(out))
    hu, old, new = before.volume(before.cases[0]).hu, before.labels(before.cases[0]), after.labels(after.cases[0])
    assert np.array_equal(new == EDEMA, old == EDEMA)
    assert (new[old == UNKNOWN_SUBTYPE] == UNKNOWN_SUBTYPE).all()
    brain = np.median(hu[(hu > 10) & (hu < 60)])
    place = {record.name: k for k, record in enumerate(before.cases[0].slices)}
    for name in ("0060_15.jpg", "0060_16.jpg"):
        added = (new == UNKNOWN_SUBTYPE)[place[name]] & (old == 0)[place[name]]
        assert added.sum() > 200
        assert np.median(hu[place[name]][added]) > brain + 4
