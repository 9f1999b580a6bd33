"""The store gives what a network meets in use, keeps nothing stale or damaged, and takes little memory."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from head_cases import Heads
from hemolens.errors import InputError, OutputError
from hemolens.geometry import Stack
from hemolens.preprocessing.pipeline import PreprocessConfig, prepare
from hemolens.sources.datasets.cases import EDEMA, UNKNOWN, Case
from hemolens.sources.datasets.opening import open_datasets
from hemolens.training.store import Store, build_store, labels_on_grid
from hemolens.volume import SourceInfo, Volume

CONFIG = PreprocessConfig(size=96)
DOWN = Stack.regular(7, column_direction=(0, -1, 0), step_mm=(0, 0, -1.5), spacing_mm=(2.0, 2.0))


def heads(root: Path, **more: object) -> Heads:
    return Heads(root / "data", {"001": "ccd", "002": "wwc", "003": "cdcdcdc"}, stacks={"003": DOWN}, **more)  # type: ignore[arg-type]


def build(data: Heads, root: Path, config: PreprocessConfig = CONFIG, members: object = None, **more: object) -> Store:
    return build_store([data], members, config, root / "cache", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("crop", ["head", "none"])
def test_samples_are_what_a_network_meets_in_use(tmp_path: Path, crop: str) -> None:
    config = PreprocessConfig(size=96, crop=crop)  # type: ignore[arg-type]
    data = heads(tmp_path)
    store = build(data, tmp_path, config)
    assert len(store) == 13
    for number, item in enumerate(store.items):
        case = store.cases[item.case]
        prepared = prepare(data.volume(case), config)
        sample = store.sample(number)
        assert np.array_equal(sample.images, prepared.contexts[item.position])
        assert np.array_equal(sample.inside, prepared.gates[item.position])
        assert sample.name == f"ct_ich/{case.patient}#{item.index + 1}"
        assert tuple(sample.findings) == case.slices[item.index].findings
        assert item.position == (6 - item.index if case.patient == "003" else item.index)


def test_masks_lie_on_their_slices(tmp_path: Path) -> None:
    store = build(heads(tmp_path), tmp_path)
    for number, item in enumerate(store.items):
        sample = store.sample(number)
        if item.mask_state == "unknown":
            assert (sample.labels == UNKNOWN).all()
            assert item.blood_pixels == 0
        else:
            bright = (sample.images[1] > 160) & ndimage.binary_erosion(sample.inside, iterations=6)
            blood = sample.labels == 4
            assert item.blood_pixels == blood.sum()
            assert blood.any() == (item.mask_state == "drawn")
            if blood.any() and store.cases[item.case].patient == "001":  # thin slices show their neighbors' blood, too
                assert (bright & blood).sum() > 0.85 * max(bright.sum(), blood.sum())


def test_whole_volumes_are_the_same_slices(tmp_path: Path) -> None:
    store = build(heads(tmp_path), tmp_path)
    for case in range(len(store.cases)):
        volume = store.volume(case)
        own = [n for n, item in enumerate(store.items) if item.case == case]
        seen = store.with_neighbors(case, volume.images)
        for place, number in enumerate(own):
            sample = store.sample(number)
            assert np.array_equal(seen[place], sample.images)
            assert np.array_equal(volume.labels[place], sample.labels)
            assert np.array_equal(volume.findings[place], sample.findings)
            assert volume.names[place] == sample.name
        assert np.array_equal(store.volume(case, 1, 3).images, volume.images[1:3])


def test_labels_take_what_covers_most_of_a_pixel() -> None:
    labels = np.zeros((3, 64, 64), np.uint8)
    labels[0, 8:24, 8:24] = 1
    labels[0, 8:24, 24:40] = 5
    labels[0, 24:40, 8:40] = EDEMA
    labels[1] = UNKNOWN
    labels[2, :, 32:] = UNKNOWN
    volume = Volume(np.zeros(labels.shape, np.float32), None, SourceInfo("images", "x"))
    same = labels_on_grid(labels, prepare(volume, PreprocessConfig(size=64, crop="none")))
    assert np.array_equal(same, labels)
    half = labels_on_grid(labels, prepare(volume, PreprocessConfig(size=32, crop="none")))
    assert np.array_equal(half[0], labels[0, ::2, ::2])
    assert (half[1] == UNKNOWN).all()


def test_slices_that_leave_one_out_are_no_neighbors(tmp_path: Path) -> None:
    data = heads(tmp_path)
    renamed = replace(data.cases[0].slices[2], name="9")
    data.cases = (replace(data.cases[0], slices=(*data.cases[0].slices[:2], renamed)),)
    store = build(data, tmp_path)
    middle = store.sample(1).images
    assert not np.array_equal(middle[0], middle[1])
    assert np.array_equal(middle[2], middle[1])  # slice 9 is far away


def test_what_was_decoded_is_not_decoded_again(tmp_path: Path) -> None:
    data = heads(tmp_path)
    shares: list[float] = []
    build(data, tmp_path, progress=shares.append)
    assert data.reads == ["001", "002", "003"]
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    build(data, tmp_path)
    assert len(data.reads) == 3
    build(data, tmp_path, PreprocessConfig(size=96, gate=False))
    assert len(data.reads) == 6


def test_a_changed_source_is_decoded_again(tmp_path: Path) -> None:
    data = heads(tmp_path)
    before = build(data, tmp_path).sample(0).images
    path = data.root / "001.npz"
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "images": arrays["images"] // 2})
    os.utime(path, ns=(1, 1))
    after = build(data, tmp_path).sample(0).images
    assert data.reads[3:] == ["001"]
    assert after.mean() < before.mean()


@pytest.mark.parametrize("harm", ["truncated", "changed", "no table", "bad table", "wrong shape"])
def test_a_damaged_case_is_decoded_again(tmp_path: Path, harm: str) -> None:
    data = heads(tmp_path)
    want = build(data, tmp_path).sample(0).images
    path = sorted((tmp_path / "cache").glob("*.npy"))[0]
    whole = path.read_bytes()
    if harm == "truncated":
        path.write_bytes(whole[:-100])
    elif harm == "changed":
        path.write_bytes(whole[:-500] + b"\xff" * 500)
    elif harm == "no table":
        path.with_suffix(".json").unlink()
    elif harm == "bad table":
        path.with_suffix(".json").write_text('{"order": [')
    else:
        np.save(path, np.zeros((1, 3, 8, 8), np.uint8))
    again = build(data, tmp_path)
    assert len(data.reads) == 4
    assert np.array_equal(again.sample(0).images, want)
    assert path.read_bytes() == whole


def test_a_copied_cache_is_taken_as_it_is(tmp_path: Path) -> None:
    data = heads(tmp_path)
    build(data, tmp_path)
    for path in (tmp_path / "cache").glob("*.npy"):
        os.utime(path, ns=(5, 5))
    build(data, tmp_path)
    assert len(data.reads) == 3


def _build(root: Path) -> None:
    data = Heads.__new__(Heads)  # the files are there already
    data.__dict__.update(_STATE[0])
    build(data, root)


_STATE: list[dict[str, object]] = []


def test_two_may_build_at_once(tmp_path: Path) -> None:
    data = heads(tmp_path)
    _STATE[:] = [data.__dict__]
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_build, args=(tmp_path,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [p.exitcode for p in both] == [0, 0]
    reads = len(data.reads)
    build(data, tmp_path)
    assert len(data.reads) == reads
    assert not list((tmp_path / "cache").glob("*.part"))


def test_several_processes_decode_the_same(tmp_path: Path) -> None:
    data = heads(tmp_path)
    one = build_store([data], None, CONFIG, tmp_path / "one")
    two = build_store([data], None, CONFIG, tmp_path / "two", workers=2)
    assert one.items == two.items
    for number in range(len(one)):
        assert np.array_equal(one.sample(number).images, two.sample(number).images)


class Broken(Heads):
    """A data set whose files are damaged."""

    def volume(self, case: Case) -> Volume:
        raise InputError(self.root, "is damaged", "Copy it again.")


def test_an_unreadable_source_is_one_line(tmp_path: Path) -> None:
    data = Broken(tmp_path / "data", {"001": "c", "002": "c"})
    for workers in (1, 2):
        with pytest.raises(InputError, match=r"data: is damaged\. Copy it again\."):
            build(data, tmp_path, workers=workers)


def test_only_members_are_in_it(tmp_path: Path) -> None:
    data = heads(tmp_path)
    patients = build(data, tmp_path, members={"ct_ich/002"})
    assert [case.patient for case in patients.cases] == ["002"]
    assert data.reads == ["002"]
    slices = build(data, tmp_path, members={"ct_ich/001#2", "ct_ich/003#1"}, unit="slice")
    assert [slices.sample(n).name for n in range(len(slices))] == ["ct_ich/001#2", "ct_ich/003#1"]


def test_members_of_another_data_set_are_refused(tmp_path: Path) -> None:
    data = heads(tmp_path)
    with pytest.raises(InputError, match=r"rsna/1: is in no opened data set \(ct_ich\)"):
        build(data, tmp_path, members={"ct_ich/001", "rsna/1"})
    with pytest.raises(InputError, match="ct_ich/001#77"):
        build(data, tmp_path, members={"ct_ich/001#77"}, unit="slice")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match="cache"):
        build(heads(tmp_path), tmp_path)


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    data = heads(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        build(data, tmp_path)
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_vanishes_is_told(tmp_path: Path) -> None:
    store = build(heads(tmp_path), tmp_path)
    for path in (tmp_path / "cache").glob("*.npy"):
        path.unlink()
    with pytest.raises(InputError, match="was removed or damaged while it was in use"):
        store.sample(0)


STREAM = """
import resource, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from head_cases import Heads
from hemolens.preprocessing.pipeline import PreprocessConfig
from hemolens.training.store import build_store
data = Heads(Path({root!r}) / "data", {{f"{{n:03d}}": "c" * 12 for n in range(30)}}, side=64)
config = PreprocessConfig(size=256, gate=False)
store = build_store([data], None, config, Path({root!r}) / "cache")
size = sum(p.stat().st_size for p in (Path({root!r}) / "cache").glob("*.npy"))
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size // 10,) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kept = []
total = 0
for number in np.random.default_rng(0).permutation(len(store)):
    sample = store.sample(int(number))
    total += int(sample.images.sum())
    if {keep}:
        kept.append(sample)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(size, grown, total)
assert grown < size // 10
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
@pytest.mark.parametrize("keep", [False, True], ids=["streamed", "kept in memory"])
def test_a_store_ten_times_larger_than_memory_streams(tmp_path: Path, keep: bool) -> None:
    """Under a limit of a tenth of the store's size every slice can be read; keeping them all cannot be done."""
    script = STREAM.format(tests=str(Path(__file__).parent), root=str(tmp_path), keep=keep)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if keep:
        assert done.returncode != 0
        assert "MemoryError" in done.stderr or "AssertionError" in done.stderr or "Cannot allocate" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        size, grown, _ = map(int, done.stdout.split())
        assert size > 60_000_000
        assert grown < size / 10


def test_real_slices_come_with_their_truth(data: Path, tmp_path: Path) -> None:
    sets = open_datasets(data, ("ct_ich", "phe_sich"))
    members = {"ct_ich/078", "phe_sich/0001"}
    store = build_store(sets, members, PreprocessConfig(size=64), tmp_path)
    drawn = [n for n, item in enumerate(store.items) if item.mask_state == "drawn"]
    pseudo = [n for n, item in enumerate(store.items) if item.mask_state == "pseudo"]
    assert drawn
    assert pseudo
    for number in (*drawn, *pseudo):
        sample = store.sample(number)
        assert sample.findings[0] == 1
        assert set(np.unique(sample.labels)) - {0} <= ({1, 2, 3, 4, 5, 6} if number in drawn else {6, EDEMA})
    for number, item in enumerate(store.items):
        if item.mask_state == "empty":
            assert not store.sample(number).labels.any()
            assert item.findings[0] == 0
