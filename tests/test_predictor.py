"""The shipped model on real scans: both runtimes agree, flips change nothing, and its card can be trusted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hemolens.demo import demo_source, demo_truth
from hemolens.errors import ConfigError, ModelError
from hemolens.geometry import Stack
from hemolens.inference.predictor import Predictor, Scores, _in_halves, _subtype_map
from hemolens.inference.registry import DEFAULT_MODEL, list_models, load_model
from hemolens.inference.runtime import available_runtimes, open_runtime
from hemolens.labels import FINDING_NAMES, SUBTYPES
from hemolens.preprocessing.head import own_crop
from hemolens.preprocessing.pipeline import Orientation, Prepared
from hemolens.preprocessing.resample import Crop
from hemolens.sources.study import ReadOptions, read_volume
from hemolens.volume import Volume


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(load_model(), "onnxruntime")


@pytest.fixture(scope="module")
def volume(data: Path) -> Volume:
    return read_volume(data / "ct_ich", ReadOptions(patient="069"))


def with_layers(volume: Volume, hu: np.ndarray, stack: Stack) -> Volume:
    return replace(volume, hu=np.ascontiguousarray(hu), stack=stack)


def test_every_shipped_model_has_a_true_card() -> None:
    models = list_models()
    assert models[0].name == DEFAULT_MODEL
    for model in models:
        assert hashlib.sha256(model.path.read_bytes()).hexdigest() == model.sha256
        card = model.card
        for key in (
            "training",
            "split",
            "metrics",
            "license",
            "limits",
            "intended_use",
            "created",
            "measured_at_commit",
        ):
            assert card[key], key
        assert {"data", "stages"} <= set(card["training"])
        for stage in card["training"]["stages"]:
            assert stage["config"]["seed"] >= 0
            assert all(session["commit"] for session in stage["sessions"])
        for sides in card["split"].values():
            assert not set(sides.get("train", ())) & {*sides.get("validation", ()), *sides.get("test", ())}
        assert {"077", "078", "079"} <= set(card["split"]["ct_ich"]["validation"]), "their masks only measure"
        assert set(card["split"]["bhsd"]) == {"test"}
        assert not any("bhsd" in d.lower() or "rsna" in d.lower() for d in card["training"]["data"])
        for row in card["metrics"]:
            assert row["n"] > 0
            assert row["value"] is None or row["low"] is None or row["low"] <= row["value"] <= row["high"]


def test_the_shipped_files_are_small() -> None:
    assert sum(m.path.stat().st_size for m in list_models()) < 20e6


@pytest.mark.parametrize("change", [b"\x00", b"more"])
def test_a_changed_network_file_is_refused(tmp_path: Path, change: bytes) -> None:
    model = load_model()
    (tmp_path / model.path.name).write_bytes(model.path.read_bytes() + change)
    (tmp_path / f"{model.name}.json").write_text(json.dumps(dict(model.card)), encoding="utf-8")
    with pytest.raises(ModelError, match="not the one that its card describes"):
        open_runtime(load_model(str(tmp_path / model.path.name)))


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"name": "x", "file": "x.onnx", "sha256": "0", "preprocess": {"sise": 1}}']
)
def test_a_broken_card_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"x\.json"):
        load_model(str(tmp_path / "x.json"))


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ModelError, match=DEFAULT_MODEL):
        load_model(DEFAULT_MODEL.replace("2d", "3d"))
    with pytest.raises(ConfigError, match="runtime 'tensorrt' is unknown"):
        open_runtime(load_model(), "tensorrt")
    with pytest.raises(ConfigError, match="threads"):
        open_runtime(load_model(), threads=0)


@pytest.mark.slow
@pytest.mark.skipif("openvino" not in available_runtimes(), reason="needs hemolens[openvino]")
def test_both_runtimes_agree(predictor: Predictor, volume: Volume) -> None:
    one = predictor.predict(volume)
    other = Predictor(load_model(), "openvino").predict(volume)
    assert np.abs(one.blood.astype(float) - other.blood).max() < 5e-3
    assert one.slice_probability == pytest.approx(other.slice_probability, abs=2e-3)


@pytest.mark.slow
def test_a_real_bleed_is_found_and_a_clean_scan_is_quieter(predictor: Predictor, volume: Volume, data: Path) -> None:
    """Patients 69 and 100 are validation patients: one with hemorrhage, one without."""
    bleeding = predictor.predict(volume)
    clean = predictor.predict(read_volume(data / "ct_ich", ReadOptions(patient="100")))
    assert bleeding.study_probability[0] > clean.study_probability[0]
    assert bleeding.blood.max() > 0.5


@pytest.mark.slow
def test_the_prediction_is_on_the_grid_of_the_source(predictor: Predictor, volume: Volume) -> None:
    found = predictor.predict(volume)
    assert found.blood.shape == found.subtype.shape == volume.shape
    assert found.slice_probability.shape == (len(volume), len(FINDING_NAMES))
    assert set(np.unique(found.subtype)) <= set(range(6))
    assert (found.subtype[found.blood >= 0.1] > 0).all()
    assert found.study_interval is not None


def test_however_a_scan_is_laid_out_the_answer_is_the_same(predictor: Predictor, data: Path) -> None:
    """The same head stored upside down, mirrored with mirrored directions, or transposed gives the same voxels."""
    scan = read_volume(data / "ct_ich", ReadOptions(patient="069", pixel_spacing_mm=0.4, slice_spacing_mm=5.0))
    scan = replace(
        scan, hu=scan.hu[10:20], stack=Stack.regular(10, (0, 0, 50.0), spacing_mm=(0.4, 0.4), step_mm=(0, 0, 5))
    )
    plain = predictor.predict(scan)
    s, r, c = scan.shape
    mirrored = Stack.regular(s, ((c - 1) * 0.4, (r - 1) * 0.4, 50.0), (-1, 0, 0), (0, -1, 0), (0.4, 0.4), (0, 0, 5))
    turned = predictor.predict(with_layers(scan, scan.hu[:, ::-1, ::-1], mirrored))
    assert np.array_equal(turned.blood[:, ::-1, ::-1], plain.blood)
    assert np.array_equal(turned.subtype[:, ::-1, ::-1], plain.subtype)
    top_down = Stack.regular(s, (0, 0, 95.0), (0, 1, 0), (1, 0, 0), (0.4, 0.4), (0, 0, -5))
    transposed = predictor.predict(with_layers(scan, scan.hu[::-1].swapaxes(1, 2), top_down))
    assert np.array_equal(transposed.blood[::-1].swapaxes(1, 2), plain.blood)
    assert transposed.slice_probability[::-1] == pytest.approx(plain.slice_probability, abs=1e-5)


@pytest.mark.slow
def test_thin_slices_give_about_the_same_volume(predictor: Predictor) -> None:
    """The middle of the demo scan cut five times finer (each slice repeated at 1 mm) holds about the same blood."""
    demo = read_volume(demo_source())
    middle = demo.hu[8:16]
    thick = with_layers(demo, middle, Stack.regular(8, spacing_mm=(0.47, 0.47), step_mm=(0, 0, 5.0)))
    fine = Stack.regular(40, (0, 0, -2.0), spacing_mm=(0.47, 0.47), step_mm=(0, 0, 1.0))
    thin = with_layers(demo, np.repeat(middle, 5, axis=0), fine)
    volumes = [(predictor.predict(v).blood >= 0.5).sum() for v in (thick, thin)]
    assert volumes[1] / 5 == pytest.approx(volumes[0], rel=0.25)


def test_a_model_may_doubt_what_is_dark_beside_a_bright_bleed() -> None:
    """The setting reaches the outline, on the pixels that the network saw: what it takes is darker than the rest."""
    demo, model = read_volume(demo_source()), load_model()
    plain, found = (
        Predictor(replace(model, preprocess=replace(model.preprocess, dark_doubt=share)), "onnxruntime").predict(demo)
        for share in (0.0, 0.35)
    )
    taken = plain.outlined & ~found.outlined
    assert taken.sum() > 200
    assert not (found.outlined & ~plain.outlined).any()
    assert np.median(demo.hu[taken]) < np.median(demo.hu[found.outlined]) - 15
    assert (demo_truth().labels()[taken] > 0).mean() < 0.1, "hardly any of it is blood"


@pytest.mark.parametrize("model", [model.name for model in list_models()])
def test_a_hematoma_hides_no_other_blood(model: str) -> None:
    """Subdural blood of the demo head is found on slices with a hematoma, too (`ich-effunet2d-4` found 17 % of it)."""
    truth = demo_truth().labels()
    index = {subtype.name: subtype.index for subtype in SUBTYPES}
    deep = np.isin(truth, [index["intraparenchymal"], index["intraventricular"]]).any(axis=(1, 2))
    beside = (truth == index["subdural"]) & deep[:, None, None]
    assert beside.sum() > 1000
    outlined = Predictor(load_model(model)).predict(read_volume(demo_source())).outlined
    assert outlined[beside].mean() > 0.5


def prepared_as_it_is(n: int, size: int, orientation: Orientation) -> Prepared:
    """Return a way back to slices of the same size as the network's."""
    gray = np.zeros((n, size, size), np.uint8)
    seen = np.stack([gray] * 3, axis=1)
    crop = Crop(0, 0, size, size, size)
    return Prepared(gray, gray == 0, seen, orientation, crop, (n, size, size), np.arange(n) * 5.0)


def test_a_voxel_is_of_its_likeliest_subtype() -> None:
    prepared = prepared_as_it_is(3, 32, Orientation())
    rng = np.random.default_rng(0)
    blood = rng.uniform(0, 0.5, (3, 32, 32)).astype(np.float32)
    blood[1] = 0
    subtypes = rng.dirichlet(np.ones(5), (3, 32, 32)).astype(np.float32).transpose(0, 3, 1, 2)
    labels = _subtype_map(prepared, Scores(blood, subtypes, None), blood.astype(np.float16))
    assert np.array_equal(labels, np.where(blood.astype(np.float16) >= 0.1, subtypes.argmax(axis=1) + 1, 0))


def test_half_precision_keeps_a_probability_and_holds_no_number_below_its_normal_ones() -> None:
    prepared = prepared_as_it_is(2, 32, Orientation())
    probability = np.geomspace(1e-12, 1, 2 * 32 * 32).astype(np.float32).reshape(2, 32, 32)
    found = _in_halves(prepared, probability)
    smallest = np.finfo(np.float16).smallest_normal
    assert (found[probability < smallest] == 0).all()
    kept = probability >= smallest
    assert found[kept].astype(float) == pytest.approx(probability[kept], rel=2**-10)


@pytest.mark.parametrize("flip", [False, True])
def test_subtypes_stay_in_the_slice_of_their_blood(flip: bool) -> None:
    """Only slices with blood are brought back; each must get its own subtype, whichever way the slices run."""
    n, size = 6, 32
    prepared = prepared_as_it_is(n, size, Orientation(flip_slices=flip))
    blood, subtypes = np.zeros((n, size, size), np.float32), np.zeros((n, 5, size, size), np.float32)
    for k, kind in ((0, 1), (1, 4)):  # off the middle, so that a wrong order cannot look right
        blood[k, 8:20, 8:20], subtypes[k, kind] = 1.0, 1.0
    subtypes[2:, 2] = 1.0
    labels = _subtype_map(prepared, Scores(blood, subtypes, None), prepared.restore(blood).astype(np.float16))
    found = [set(np.unique(plane)) - {0} for plane in labels]
    expected = [{2}, {5}, set(), set(), set(), set()]
    assert found == (expected[::-1] if flip else expected)


def test_a_model_may_look_twice_at_small_heads() -> None:
    """The setting reaches the answer, on those slices alone whose own head is small."""
    demo, model = read_volume(demo_source()), load_model()
    plain, twice = (
        Predictor(replace(model, preprocess=replace(model.preprocess, enlarge_below=below)), "onnxruntime").score(demo)
        for below in (0.0, 0.8)
    )
    small = np.array([own_crop(crop, 0.8) is not None for crop in plain[0].crops])
    assert 0 < small.sum() < len(small)
    assert plain[1].logits is not None
    assert twice[1].logits is not None
    changed = (plain[1].logits != twice[1].logits).any(axis=1)
    assert changed.tolist() == small.tolist()


@pytest.mark.slow
def test_a_bleed_near_the_vertex_is_found(predictor: Predictor, data: Path) -> None:
    """Slice 30 of patient 92 shows a bright hematoma of a centimeter, to which `ich-effunet2d-9` gave 0.01."""
    scan = read_volume(data / "ct_ich", ReadOptions(patient="092"))
    found = predictor.predict(scan)
    outline = found.outlined[29]
    assert outline.sum() > 300
    assert np.median(scan.hu[29][outline]) > np.median(scan.hu[29][(scan.hu[29] > 20) & (scan.hu[29] < 60)]) + 10
    assert found.slice_probability[29, 0] > 0.5
