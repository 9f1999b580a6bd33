"""Batches: sample i hangs on seed and i alone, every kind says what is known of it, validation shows all once."""

from __future__ import annotations

import itertools
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from head_cases import Heads

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from hemolens.errors import ConfigError, HemolensError, InputError  # noqa: E402
from hemolens.preprocessing.pipeline import PreprocessConfig  # noqa: E402
from hemolens.sources.datasets.cases import EDEMA, UNKNOWN, Case, SliceRecord  # noqa: E402
from hemolens.training.augment import AugmentConfig  # noqa: E402
from hemolens.training.data import MIX_KINDS, DataConfig, epoch_steps, open_batches, ordered_batches  # noqa: E402
from hemolens.training.draw import Drawer, window_findings  # noqa: E402
from hemolens.training.store import Store, build_store  # noqa: E402
from hemolens.training.synthesis import SynthesisConfig  # noqa: E402

STILL = AugmentConfig(enabled=False)
SHAPES = {"slice": (3, 96, 96), "volume": (1, 4, 96, 96), "scan": (4, 3, 96, 96)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("heads")
    ct = Heads(root / "ct", {"001": "cccccc", "002": "cwwc", "003": "cddccu", "004": "ccccc"})
    phe = Heads(root / "phe", {"0001": "cpppc", "0002": "ccc"}, name="phe_sich")
    return build_store([ct, phe], None, PreprocessConfig(size=96), root / "cache")


def batches(store: Store, data: DataConfig | None = None, **more: Any) -> Any:
    options: dict[str, Any] = {"sample": "slice", "channels": 3, "batch": 4, "seed": 0, **more}
    config = data or DataConfig(workers=0, depth=4)
    augment = options.pop("augment", STILL)
    return open_batches(store, config, options.pop("synthesis", SynthesisConfig()), augment, **options)


def take(stream: Any, count: int) -> list[dict[str, Any]]:
    return list(itertools.islice(stream, count))


def names_of(found: list[dict[str, Any]]) -> list[str]:
    return [name for batch in found for name in batch["names"]]


def only(kind: str, **more: Any) -> DataConfig:
    return DataConfig(**{k: float(k == kind) for k in MIX_KINDS}, **{"workers": 0, "depth": 4, **more})


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(v.nan_to_num(-1), other[k].nan_to_num(-1)) if isinstance(v, torch.Tensor) else v == other[k]
        for k, v in one.items()
    )


@pytest.mark.parametrize("sample", ["slice", "volume", "scan"])
@pytest.mark.parametrize("channels", [1, 3])
def test_batches_have_the_promised_shapes(store: Store, sample: str, channels: int) -> None:
    if sample == "volume" and channels == 3:
        return
    batch = next(batches(store, sample=sample, channels=channels, augment=AugmentConfig(jpeg=0.5)))
    shape = [4, *SHAPES[sample]]
    if sample != "volume":
        shape[-3] = channels
    assert list(batch["images"].shape) == shape
    assert batch["images"].dtype == torch.float32
    assert batch["images"].max() > 200
    assert batch["findings"].shape == ((4, 4, 6) if sample == "scan" else (4, 6))
    assert batch["number"].tolist() == [0, 1, 2, 3]
    assert len(batch["names"]) == 4
    assert ("scan_findings" in batch) == (sample != "slice")
    if sample != "scan":
        plane = [4, *shape[2:]]
        assert list(batch["labels"].shape) == plane
        assert batch["labels"].dtype == torch.int64
        assert list(batch["inside"].shape) == plane
        assert set(batch["inside"].unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("sample", ["slice", "volume", "scan"])
@pytest.mark.parametrize("sampling", ["mix", "balanced", "shuffle"])
def test_samples_hang_on_seed_and_number_alone(store: Store, sample: str, sampling: str) -> None:
    config = DataConfig(sampling=sampling, workers=0, depth=4)  # type: ignore[arg-type]
    whole = take(batches(store, config, sample=sample, augment=AugmentConfig()), 4)
    assert same(next(batches(store, config, sample=sample, start_step=3, augment=AugmentConfig())), whole[3])
    shards = [batches(store, config, sample=sample, shard=(r, 2), augment=AugmentConfig()) for r in (0, 1)]
    for step in whole:
        parts = [next(shard) for shard in shards]
        joined = {
            k: torch.cat([p[k] for p in parts]) if isinstance(v, torch.Tensor) else names_of(parts)
            for k, v in step.items()
        }
        assert same(joined, step)
    other = next(batches(store, config, sample=sample, seed=1, augment=AugmentConfig()))
    assert not same(other, whole[0])


def test_workers_change_nothing(store: Store) -> None:
    alone = take(batches(store), 5)
    for workers in (1, 2):
        stream = batches(store, DataConfig(workers=workers, depth=4))
        assert all(same(a, b) for a, b in zip(alone, take(stream, 5), strict=True))
        stream.close()


@pytest.mark.parametrize("kind", MIX_KINDS)
def test_each_kind_of_sample_says_what_is_known_of_it(store: Store, kind: str) -> None:
    found = take(batches(store, only(kind), synthesis=SynthesisConfig(hard_negative=0.5)), 6)
    labels = torch.cat([b["labels"] for b in found])
    findings = torch.cat([b["findings"] for b in found])
    names = names_of(found)
    unknown = (labels == UNKNOWN).flatten(1).all(1)
    blood = ((labels > 0) & (labels < EDEMA)).flatten(1).any(1)
    assert all(name.startswith("phe_sich") == (kind.endswith("_phe") or kind == "pseudo") for name in names)
    assert unknown.all() if kind == "weak" else not (labels == UNKNOWN).any()
    if kind.startswith("clean"):
        assert not labels.any()
        assert not findings.any()
    elif kind == "weak":
        assert (findings[:, 0] == 1).all()
    elif kind in {"pseudo", "drawn"}:
        assert blood.all()
        assert set(labels.unique().tolist()) == {0, 6 if kind == "pseudo" else 4}
        assert findings.isnan().any() == (kind == "pseudo")
    else:
        assert blood.float().mean() > 0.7
        assert torch.equal(findings[:, 0] == 1, blood)
        for index in range(1, 6):
            assert torch.equal(findings[:, index] == 1, (labels == index).flatten(1).any(1))


def test_shares_are_kept(store: Store) -> None:
    config = only("clean", workers=0)
    config = replace(config, weak=0.5, pseudo=0.5)
    names = names_of(take(batches(store, config, batch=50), 8))
    phe = sum(name.startswith("phe_sich") for name in names) / len(names)
    weak = sum(name.startswith("ct_ich/002#2") or name.startswith("ct_ich/002#3") for name in names) / len(names)
    assert phe == pytest.approx(0.25, abs=0.06)
    assert weak == pytest.approx(0.25, abs=0.06)


def test_a_pass_shows_every_slice_once(store: Store) -> None:
    config = DataConfig(sampling="shuffle", clean_phe=1.0, workers=0)
    known = [n for n, item in enumerate(store.items) if not np.isnan(item.findings[0])]
    steps = epoch_steps(store, config, sample="slice", batch=4)
    assert steps == len(known) // 4 == 7
    first, second = (names_of(take(batches(store, config, start_step=start), steps)) for start in (0, steps))
    assert sorted(first) == sorted(second) == sorted(store.sample(n).name for n in known)
    assert first != second
    scans = DataConfig(sampling="shuffle", workers=0, clean_phe=1.0, depth=4)
    names = names_of(take(batches(store, scans, sample="scan", batch=2), 3))
    assert len({name.split("#")[0] for name in names}) == 6


def test_balanced_sampling_shows_as_many_bleeding_as_clean(store: Store) -> None:
    config = DataConfig(sampling="balanced", workers=0)
    findings = torch.cat([b["findings"] for b in take(batches(store, config), 10)])
    assert findings[:, 0].mean() == 0.5


def test_a_lone_slice_is_shown_three_times(store: Store) -> None:
    always = take(batches(store, DataConfig(repeat_center=1.0, workers=0)), 4)
    for batch in always:
        assert torch.equal(batch["images"][:, 0], batch["images"][:, 1])
        assert torch.equal(batch["images"][:, 2], batch["images"][:, 1])
    never = torch.cat([b["images"] for b in take(batches(store, only("clean", repeat_center=0.0)), 4)])
    differs = (never[:, [0, 2]] != never[:, 1:2]).flatten(2).any(2)
    assert differs.any(1).all()
    assert not differs.all()  # the ends of a scan have one neighbor


def test_painted_volumes_are_labeled_slice_by_slice(store: Store) -> None:
    found = take(batches(store, only("synthetic"), sample="volume"), 8)
    images = torch.cat([b["images"] for b in found])[:, 0]
    labels = torch.cat([b["labels"] for b in found])
    blood = (labels > 0) & (labels < EDEMA)
    slices = blood.flatten(2).any(2)
    assert (slices.sum(1) > 1).float().mean() > 0.3  # most bleeds are higher than a slice
    inside = images[blood].mean() - images[(labels == 0) & (images > 60) & (images < 180)].mean()
    assert inside > 10
    for batch in found:
        there = [float(((b > 0) & (b < EDEMA)).any()) for b in batch["labels"]]
        assert batch["scan_findings"][:, 0].tolist() == there


@pytest.mark.parametrize(
    ("sample", "kind", "subtype"),
    [("slice", "drawn", 2), ("slice", "drawn", 4), ("slice", "pseudo", 2), ("volume", "drawn", 2)],
)
def test_bleeds_are_painted_beside_real_ones(store: Store, sample: str, kind: str, subtype: int) -> None:
    """A network that sees a hematoma alone on every real slice learns that it never has company."""
    weights = tuple(float(k == subtype) for k in range(1, 6))
    one_kind = {"subtype_weights": weights, "second_bleed": 0, "hard_negative": 0, "chronic": 0, "faint": 0, "edema": 1}
    alone = take(batches(store, only(kind), sample=sample), 6)
    off = take(batches(store, only(kind), sample=sample, synthesis=SynthesisConfig(**one_kind)), 6)
    beside = take(batches(store, only(kind), sample=sample, synthesis=SynthesisConfig(beside=1, **one_kind)), 6)
    assert all(same(one, other) for one, other in zip(alone, off, strict=True))
    painted = 0
    for one, other in zip(alone, beside, strict=True):
        assert one["names"] == other["names"]
        added = one["labels"] != other["labels"]
        assert torch.isin(other["labels"][added], torch.tensor([subtype, EDEMA])).all()
        assert (one["labels"][added & (other["labels"] == EDEMA)] == 0).all(), "a painted rim hides no blood"
        assert ((one["labels"] > 0) & ~added).any(), "what was outlined before is still there"
        there = (added & (other["labels"] == subtype)).flatten(1).any(dim=1)
        painted += int(there.sum())
        expected = one["findings"].clone()
        expected[there, 0] = expected[there, subtype] = 1  # what is unknown of the others stays so
        assert torch.equal(other["findings"].nan_to_num(-1), expected.nan_to_num(-1))
    assert painted >= 6


@pytest.mark.parametrize(("sample", "kind"), [("slice", "drawn"), ("slice", "pseudo"), ("volume", "drawn")])
def test_what_is_no_blood_is_painted_beside_real_bleeds(store: Store, sample: str, kind: str) -> None:
    """A network that sees only blood painted beside a hematoma learns that all that looks like it there is."""
    alone = take(batches(store, only(kind), sample=sample), 6)
    settings = SynthesisConfig(negative_beside=1, hard_negative=0)
    beside = take(batches(store, only(kind), sample=sample, synthesis=settings), 6)
    changed = 0
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one["labels"], other["labels"])
        assert torch.equal(one["findings"].nan_to_num(-1), other["findings"].nan_to_num(-1))
        pixels = (one["images"] != other["images"]).any(dim=1)
        known = (one["labels"] > 0) & (one["labels"] != UNKNOWN)
        assert known.any()
        assert not (pixels & known).any(), "known blood is left as it is"
        changed += int(pixels.flatten(1).any(dim=1).sum())
    assert changed >= 6


@pytest.mark.parametrize("sample", ["volume", "scan"])
def test_a_painted_scan_bleeds_though_its_own_label_says_no(tmp_path: Path, sample: str) -> None:
    heads = Heads(tmp_path / "heads", {"001": "cccccc"}, scan_findings={"001": (0.0,) * 6})
    labeled = build_store([heads], None, PreprocessConfig(size=96), tmp_path / "cache")
    (batch,) = take(batches(labeled, only("synthetic"), sample=sample, channels=1), 1)
    slices = batch["labels"].flatten(1) if sample == "volume" else batch["findings"][:, :, 0]
    there = slices.amax(dim=1) > 0
    assert there.any()
    assert batch["scan_findings"][:, 0].tolist() == there.tolist()


def test_scans_shorter_than_the_sample_end_in_nothing(store: Store) -> None:
    batch = next(batches(store, only("clean_phe", depth=9), sample="scan", batch=2))
    assert not batch["images"][:, 3:].any()
    assert batch["findings"][:, 3:].isnan().all()
    assert not batch["findings"][:, :3].isnan().any()
    volume = next(batches(store, only("clean_phe", depth=9), sample="volume", batch=2))
    shown = [store.length(next(k for k, c in enumerate(store.cases) if n.startswith(c.id))) for n in volume["names"]]
    for image, labels, length in zip(volume["images"][:, 0], volume["labels"], shown, strict=True):
        assert not image[length:].any()
        assert (labels[length:] == UNKNOWN).all()
        assert not (labels[:length] == UNKNOWN).any()


def test_what_is_known_of_a_part_of_a_scan() -> None:
    nan = float("nan")
    record = SliceRecord("1", (nan,) * 6, "unknown")
    case = Case("cq500", "1", "", (record,) * 3, (1.0, 0.0, 1.0, 0.0, nan, 0.0))
    rows = [record.findings] * 3
    assert np.array_equal(window_findings(case, rows), case.scan_findings or (), equal_nan=True)
    assert np.array_equal(window_findings(case, rows[:2]), (nan, 0, nan, 0, nan, 0), equal_nan=True)


@pytest.mark.parametrize("batch", [3, 64])
def test_validation_shows_every_slice_once_as_it_is(store: Store, batch: int) -> None:
    found = list(ordered_batches(store, DataConfig(), sample="slice", channels=3, batch=batch))
    names = names_of(found)
    assert names == [store.sample(n).name for n in range(len(store))]
    images = torch.cat([b["images"] for b in found])
    labels = torch.cat([b["labels"] for b in found])
    for number in range(len(store)):
        sample = store.sample(number)
        assert np.array_equal(images[number].numpy(), sample.images)
        assert np.array_equal(labels[number].numpy(), sample.labels)
    assert torch.cat([b["number"] for b in found]).tolist() == list(range(len(store)))
    parts = [
        list(ordered_batches(store, DataConfig(), sample="slice", channels=1, batch=batch, shard=(r, 2)))
        for r in (0, 1)
    ]
    assert sorted(names_of(parts[0] + parts[1])) == sorted(names)


def test_validation_counts_every_slice_of_a_volume_once(store: Store) -> None:
    found = list(ordered_batches(store, DataConfig(depth=4), sample="volume", channels=1, batch=2))
    labels = torch.cat([b["labels"] for b in found])
    known = (labels != UNKNOWN).flatten(2).any(2).sum()
    assert known == sum(item.mask_state != "unknown" for item in store.items)
    blood = ((labels > 0) & (labels < EDEMA)).sum()
    assert blood == sum(item.blood_pixels for item in store.items)
    scans = list(ordered_batches(store, DataConfig(depth=4), sample="scan", channels=3, batch=2))
    assert [b["images"].shape[:2] for b in scans] == [(1, store.length(k)) for k in range(len(store.cases))]
    assert [float(b["scan_findings"][0, 0]) for b in scans[:2]] == [0.0, 1.0]


def test_a_batch_that_cannot_be_shared_out_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="batch: 5 cannot be shared out among 2 processes"):
        batches(store, batch=5, shard=(0, 2))


def test_data_without_a_wanted_kind_are_refused(tmp_path: Path) -> None:
    clean = Heads(tmp_path / "ct", {"001": "cc"})
    store = build_store([clean], None, PreprocessConfig(size=96), tmp_path / "cache")
    with pytest.raises(ConfigError, match="the training cases hold none of: drawn"):
        batches(store, only("drawn"))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_slice_is_one_line(tmp_path: Path, workers: int) -> None:
    store = build_store([Heads(tmp_path / "ct", {"001": "cc"})], None, PreprocessConfig(size=96), tmp_path / "cache")
    for path in (tmp_path / "cache").glob("*.npy"):
        path.unlink()
    with pytest.raises(InputError, match="was removed or damaged while it was in use") as caught:
        next(batches(store, only("clean", workers=workers)))
    assert "\n" not in str(caught.value)


def test_a_killed_worker_is_one_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()

    def die(self: Drawer, number: int) -> None:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Drawer, "draw", die)
    with pytest.raises(HemolensError, match=r"was killed.* Lower data\.workers") as caught:
        next(batches(store, DataConfig(workers=1)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"clean": -1.0}, {"repeat_center": 2.0}, {"depth": 0}, {"workers": -1}, dict.fromkeys(MIX_KINDS, 0.0)]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        DataConfig(**wrong)
