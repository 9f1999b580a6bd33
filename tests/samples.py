"""Small scans under the very names that README and docs use, so that their command lines can be run as printed."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dicom_files import Series, write_medium, write_series
from hemolens.inference.registry import load_model

SPACING_MM = 3.0
SERIES = Series(
    slices=10,
    rows=80,
    columns=64,
    spacing_mm=(SPACING_MM, SPACING_MM),
    series="1.2.840.113619.2.5.1",
    patient="SAMPLE",
    extra={"StudyDate": "20200101", "StudyTime": "120000", "StudyID": "1"},
)


def head_hu() -> NDArray[np.int16]:
    """A head of ellipsoids with one bleed, shape ``(slices, rows, columns)``."""
    z, y, x = np.mgrid[: SERIES.slices, : SERIES.rows, : SERIES.columns].astype(float)
    z, y, x = (z - 3) * 5, (y - SERIES.rows / 2) * SPACING_MM, (x - SERIES.columns / 2) * SPACING_MM
    radius = np.sqrt((x / 75) ** 2 + (y / 95) ** 2 + (z / 70) ** 2)
    hu = np.full(radius.shape, -1000, np.int16)
    hu[radius < 1.05] = 20
    hu[radius < 1.0] = 900
    hu[radius < 0.93] = 32
    hu[(x + 30) ** 2 + (y - 10) ** 2 + z**2 < 18**2] = 66
    return hu


def make_samples(root: Path) -> None:
    """Fill `root` with every path that the pages name."""
    hu = head_hu()
    for name in ("path/to/folder", "path/to/dicom-folder", "scans/a", "scans/b", "scans/c"):
        write_series(root / name, SERIES, hu + 1024)
    files = sorted((root / "path/to/folder").iterdir())
    shutil.copy(files[0], root / "path/to/single.dcm")
    with zipfile.ZipFile(root / "path/to/archive.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    write_medium(root / "medium", files)
    shutil.copytree(root / "medium", root / "path/to", dirs_exist_ok=True)  # path/to/DICOMDIR and its files
    nib.save(nib.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-SPACING_MM, -SPACING_MM, 5, 1])), root / "scan.nii.gz")
    gray = np.clip((hu + 20) / 120 * 255, 0, 255).astype(np.uint8)
    for name, ending in (("path/to/slices", "png"), ("ct_ich/Patients_CT/078/brain", "jpg")):
        (root / name).mkdir(parents=True)
        for number, image in enumerate(gray, start=1):
            Image.fromarray(image).save(root / name / f"{number}.{ending}")
    Image.fromarray(gray[0]).save(root / "ct_ich/Patients_CT/078/brain/3_HGE_Seg.jpg")
    head = "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural,No_Hemorrhage"
    rows = [f"78,{number},0,1,0,0,0,0,0" for number in range(1, len(gray) + 1)]
    table = "\n".join([head + ",Fracture_Yes_No", *rows, ""])
    (root / "ct_ich" / "hemorrhage_diagnosis.csv").write_text(table, encoding="utf-8-sig")
    shutil.copytree(root / "ct_ich", root / "path/to/ct_ich")
    model = load_model()
    shutil.copy(model.path, root / "path/to/network.onnx")
    (root / "path/to/network.json").write_text(json.dumps({**model.card, "file": "network.onnx"}))
