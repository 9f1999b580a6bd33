"""`make pacs-demo`, whole: Orthanc, hemolens and OHIF run, and in the browser the overlay lies where the lesion is."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.pixels import pixel_array

from conftest import ROOT
from hemolens.labels import SUBTYPES
from pacs_peers import need
from scripts import script
from test_pacs_api import CHROMIUM, FLAGS

SHOT = os.environ.get("HEMOLENS_SCREENSHOT")
"""Where to keep the picture for the docs."""
PLACES = """points => {
  const shown = cornerstone.getEnabledElements()[0].viewport;
  const box = shown.canvas.getBoundingClientRect();
  return points.map(p => { const [x, y] = shown.worldToCanvas(p); return [box.left + x, box.top + y]; });
}"""
LOADED = """() => services.displaySetService.getActiveDisplaySets()
  .filter(set => set.Modality === 'SR').flatMap(set => (set.measurements ?? []).map(m => m.loaded))"""
SHOWN = "() => { try { return cornerstone.getEnabledElements()[0].viewport.getCurrentImageId() } catch { return '' } }"


def fetch(demo: ModuleType, shown: Any, folder: Path, modality: str) -> Dataset:
    port = int(shown.orthanc.split(":")[2].split("/")[0])
    (series,) = [s for s in demo._get(port, "/series?expand") if s["MainDicomTags"]["Modality"] == modality]
    (name,) = series["Instances"]
    path = folder / f"{modality}.dcm"
    subprocess.run(
        [sys.executable, "-c", "import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], sys.argv[2])",
         f"http://127.0.0.1:{port}/instances/{name}/file", str(path)], check=True,
    )  # fmt: skip
    return dcmread(path)


def outlined(seg: Dataset, sop_uid: str) -> dict[tuple[int, ...], np.ndarray]:
    """World points of the outlined voxels of one image, in mm, by the color of their segment."""
    from hemolens.reports.dicom_common import subtype_code

    colors = {subtype_code(s).value: s.color_rgb for s in SUBTYPES}
    named = {s.SegmentNumber: s.SegmentedPropertyTypeCodeSequence[0].CodeValue for s in seg.SegmentSequence}
    shared, frames, found = seg.SharedFunctionalGroupsSequence[0], pixel_array(seg), {}
    for plane, item in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        if item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID != sop_uid:
            continue
        origin = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        along = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
        spacing = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
        rows, columns = np.nonzero(plane)
        points = origin + columns[:, None] * spacing[1] * along[:3] + rows[:, None] * spacing[0] * along[3:]
        found[colors[named[item.SegmentIdentificationSequence[0].ReferencedSegmentNumber]]] = points
    return found


@pytest.mark.slow
def test_the_overlay_lies_where_the_lesion_is(tmp_path: Path) -> None:
    need("Orthanc", "npm", "chromium")
    from playwright.sync_api import sync_playwright

    demo = script("tools", "pacs_demo")
    folder = ROOT / ".pacs-demo"  # OHIF is kept there from run to run
    with demo.demo(folder) as shown, sync_playwright() as player:
        seg = fetch(demo, shown, tmp_path, "SEG")
        assert seg.StudyInstanceUID == shown.study_uid
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(shown.link, timeout=180_000)
        page.get_by_text("Confirm and hide").click(timeout=180_000)
        pixels, inside = wait_for_overlay(page, seg)
        if SHOT:
            Image.fromarray(pixels).quantize(255, method=Image.Quantize.FASTOCTREE).save(SHOT, optimize=True)
        check_report(page)
        browser.close()
    colored = colorful(pixels)
    assert sum(len(places) for places in inside.values()) > 200
    everywhere = np.zeros(colored.shape, bool)
    for color, places in inside.items():
        x, y = np.rint(places).astype(int).T
        everywhere[y, x] = True
        assert colored[y, x].mean() > 0.9, "the overlay does not cover the lesion"
        middle = np.median(pixels[y, x], axis=0)
        assert hue_distance(middle, color) < 0.12, f"the overlay is {middle}, not {color}"
    # Nothing else inside the image has a color: the viewer's own tools stand around it.
    left, top, right, bottom = 420, 180, 1080, 700
    near = np.array(Image.fromarray(everywhere).resize(everywhere.shape[::-1])) | grown(everywhere, 4)
    stray = (colored & ~near)[top:bottom, left:right]
    assert stray.mean() < 0.001


def wait_for_overlay(page: Any, seg: Dataset) -> tuple[np.ndarray, dict[tuple[int, ...], np.ndarray]]:
    """Return the picture and the places of the outlined voxels in it, once the overlay is drawn."""
    for _ in range(60):
        page.wait_for_timeout(2000)
        image = page.evaluate(SHOWN)
        points = outlined(seg, image.split("/instances/")[1].split("/")[0]) if "/instances/" in image else {}
        if not points:
            continue
        places = {color: np.array(page.evaluate(PLACES, p.tolist())) for color, p in points.items()}
        pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        x, y = np.rint(np.concatenate(list(places.values()))).astype(int).T
        if colorful(pixels)[y, x].mean() > 0.9:
            return pixels, places
    pytest.fail("no overlay was drawn within two minutes")


def check_report(page: Any) -> None:
    """The report opens over the images, and each of its lesions has found its place there."""
    page.get_by_text("hemolens report").dblclick()
    loaded: list[bool] = []
    for _ in range(60):
        page.wait_for_timeout(1000)
        loaded = page.evaluate(LOADED)
        if len(loaded) > 1 and all(loaded[1:]) and "/instances/" in page.evaluate(SHOWN):
            return
    pytest.fail(f"the report was not shown: {loaded}")


def colorful(pixels: np.ndarray) -> np.ndarray:
    return np.ptp(pixels.astype(int), axis=-1) > 40


def hue_distance(one: Any, other: Any) -> float:
    """Distance of two colors on the color circle, 0 to 0.5."""
    import colorsys

    hues = [colorsys.rgb_to_hsv(*(np.asarray(c, float) / 255))[0] for c in (one, other)]
    return min(abs(hues[0] - hues[1]), 1 - abs(hues[0] - hues[1]))


def grown(mask: np.ndarray, by: int) -> np.ndarray:
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, iterations=by)


def test_a_package_that_is_not_ohif_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = script("tools", "pacs_demo")
    (tmp_path / f"ohif-app-{demo.OHIF_VERSION}.tgz").write_bytes(b"something else")
    monkeypatch.setattr(demo.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", ""))
    with pytest.raises(demo.DemoError, match="is not what"):
        demo.get_ohif(tmp_path)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    demo = script("tools", "pacs_demo")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(demo.DemoError, match="Orthanc and npm is missing"):
        demo._check_tools()


def test_the_demo_listens_on_this_computer_alone(tmp_path: Path) -> None:
    import json

    from hemolens.pacs.config import load_pacs_config

    demo = script("tools", "pacs_demo")
    ports = dict.fromkeys(("http", "dicom", "hemolens", "worklist", "viewer"), 4000)
    assert json.loads(demo.orthanc_settings(tmp_path, ports).read_text())["RemoteAccessAllowed"] is False
    config = load_pacs_config(demo.hemolens_settings(tmp_path, ports))
    assert (config.listener.host, config.api.host) == ("127.0.0.1", "127.0.0.1")
    assert config.api.viewer_url.endswith("StudyInstanceUIDs={study}")
