"""Small data sets in the layouts that were published, for tests: a few slices, every oddity that the real ones have."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from dicom_files import Series, write_series

CT_ICH_HEADER = (
    "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural,No_Hemorrhage,"
    "Fracture_Yes_No"
)
SHAPE = (24, 20)


def save_gray(path: Path, value: int = 100, blood: bool = False, shape: tuple[int, int] = SHAPE, seed: int = 0) -> None:
    """Write a noisy gray picture, or a mask with a square of blood."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if blood:
        gray = np.zeros(shape, np.uint8)
        gray[8:16, 4:12] = 255
    else:
        gray = np.random.default_rng(seed).integers(value - 20, value + 20, shape).astype(np.uint8)
    Image.fromarray(gray).save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def write_ct_ich(root: Path) -> Path:
    """CT-ICH 1.0: three patients; 50 has a drawn epidural bleed in slice 2 and one of unknown outline in 3."""
    rows = [CT_ICH_HEADER]
    for patient, marks in ((49, "000"), (50, "0EU"), (51, "0B0")):
        for number, mark in enumerate(marks, 1):
            epidural, both = mark in "EUB", mark == "B"
            flags = f"0,{int(both)},0,{int(epidural)},0,{int(mark == '0')},1"
            rows.append(f"{patient},{number},{flags}")
            folder = root / "Patients_CT" / f"{patient:03d}" / "brain"
            save_gray(folder / f"{number}.jpg", seed=patient * 10 + number)
            if mark in "EB":
                save_gray(folder / f"{number}_HGE_Seg.jpg", blood=True)
    (root / "hemorrhage_diagnosis.csv").write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    return root


def save_nifti(path: Path, values: np.ndarray, *, down: bool = False, shift: float = 0.0) -> None:
    """Write ``(columns, rows, slices)`` with an affine toward L, P, S, or toward I if `down`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-9.0, -9.0, -5.0 if down else 5.0, 1.0])
    affine[:3, 3] = [100.0 + shift, 100.0, 20.0]
    nib.save(nib.Nifti1Image(values, affine), path)


def nifti_scan(slices: int = 4, seed: int = 0) -> np.ndarray:
    """Voxels in Hounsfield units with air outside."""
    hu = np.random.default_rng(seed).integers(0, 60, (SHAPE[1], SHAPE[0], slices)).astype(np.int16)
    hu[:2] = -1000
    hu[-1, 0, :] = np.arange(slices)  # tells slices apart
    return hu


def nifti_mask(values: dict[int, int], slices: int = 4) -> np.ndarray:
    """A block of ``values[k]`` in the file's slice k."""
    mask = np.zeros((SHAPE[1], SHAPE[0], slices), np.uint8)
    for k, value in values.items():
        mask[4:12, 8:16, k] = value
    return mask


def write_ct_ich_nifti(root: Path) -> Path:
    """CT-ICH 1.3.1: patient 49 rises with the file, 50 runs against it; mask values as published, about 255."""
    rows = [CT_ICH_HEADER]
    for patient, bleeding in ((49, ()), (50, (2, 3))):
        for number in range(1, 5):
            flags = "0,0,0,0,1,0,0" if number in bleeding else "0,0,0,0,0,1,0"
            rows.append(f"{patient},{number},{flags}")
        down = patient == 50
        save_nifti(root / "ct_scans" / f"{patient:03d}.nii", nifti_scan(seed=patient), down=down)
        mask = nifti_mask({number - 1: 255 for number in bleeding}).astype(np.float32)
        if bleeding:
            mask[3, 8:16, 1] = 60.0  # an interpolated edge
        save_nifti(root / "masks" / f"{patient:03d}.nii", mask, down=down)
    (root / "hemorrhage_diagnosis_raw_ct.csv").write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    return root


def write_bhsd(root: Path, folders: tuple[str, str] = ("images", "ground truths")) -> Path:
    """BHSD's label_192: two scans of one patient and one of another, all five classes."""
    content = {
        "ID_0237f3c9_ID_40015688b9": {0: 1, 1: 2},
        "ID_0237f3c9_ID_50015688b9": {1: 3, 2: 4},
        "ID_029ebbea_ID_563afa0901": {3: 5},
    }
    for seed, (name, classes) in enumerate(content.items()):
        save_nifti(root / folders[0] / f"{name}.nii.gz", nifti_scan(seed=seed))
        save_nifti(root / folders[1] / f"{name}.nii.gz", nifti_mask(classes))
    return root


def write_instance(root: Path) -> Path:
    """INSTANCE 2022's training set."""
    for number, classes in ((1, {1: 1, 2: 1}), (2, {3: 1}), (3, {0: 1})):
        save_nifti(root / "train_2" / "data" / f"{number:03d}.nii.gz", nifti_scan(seed=number))
        save_nifti(root / "train_2" / "label" / f"{number:03d}.nii.gz", nifti_mask(classes))
    return root


RSNA_NAMES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
RSNA_STRIPPED = dict.fromkeys(
    ("SOPClassUID", "ImageType", "SeriesDescription", "ConvolutionKernel", "InstanceNumber", "SeriesNumber",
     "FrameOfReferenceUID", "SliceThickness", "StudyDate")
)  # fmt: skip
RSNA_STUDIES = (
    ("ID_aaa", "ID_s1", "0SI0"),
    ("ID_aaa", "ID_s2", "00"),
    ("ID_bbb", "ID_s3", "0EE"),
    ("ID_ccc", "ID_s4", "00"),
)
"""Patient, study and what each slice shows: nothing, subdural, intraparenchymal, epidural."""


def rsna_name(study: str, index: int) -> str:
    return f"ID_{study[3:]}{index:07d}"


def write_rsna(root: Path) -> Path:
    """RSNA 2019 stage 2: four studies of three patients, names that tell no order, doubled rows, the broken file."""
    rows = ["ID,Label"]
    for patient, study, marks in RSNA_STUDIES:
        # Names fall while slices rise, so that only positions can tell the order.
        names = [rsna_name(study, len(marks) - index) for index in range(len(marks))]
        plan = Series(slices=len(marks), patient=patient, study=study, series=f"{study}x", extra=RSNA_STRIPPED)
        folder = root / "stage_2_train"
        paths = write_series(
            folder, plan, change=lambda i, ds, n=names: setattr(ds, "SOPInstanceUID", n[i]), prefix="t"
        )
        for name, path, mark in zip(names, paths, marks, strict=True):
            path.rename(folder / f"{name}.dcm")
            true = {"S": "subdural", "I": "intraparenchymal", "E": "epidural"}.get(mark)
            rows += [
                f"{name}_{kind},{int(kind == true or (kind == 'any' and true is not None))}" for kind in RSNA_NAMES
            ]
    rows += rows[1:7]  # the published table names a few slices twice
    broken = root / "stage_2_train" / "ID_6431af929.dcm"
    shutil.copy(next((root / "stage_2_train").glob("*.dcm")), broken)
    broken.write_bytes(broken.read_bytes()[:-200])
    rows += [f"ID_6431af929_{kind},0" for kind in RSNA_NAMES]
    (root / "stage_2_train.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


CQ500_FINDINGS = ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH")


def write_cq500(root: Path) -> Path:
    """CQ500: scan 0 bleeds for two of three readers, 1 for one of three, 2 bleeds for all; 0 has a thin series too."""
    said = {0: ("110000", "110000", "000000"), 1: ("100010", "000000", "000000"), 2: ("101001", "100001", "101001")}
    columns = [f"R{reader}:{finding}" for reader in (1, 2, 3) for finding in (*CQ500_FINDINGS, "Fracture")]
    rows = [",".join(["name", "Category", *columns])]
    for number, readers in said.items():
        rows.append(",".join([f"CQ500-CT-{number}", "B1", *(v for r in readers for v in (*r, "0"))]))
        study = root / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study"
        plan = Series(
            slices=32, offsets_mm=tuple(5.0 * k for k in range(32)), patient=f"CQ500CT{number}", study=f"1.{number}",
            series=f"1.{number}.1", description="CT Plain", kernel="H31s",
        )  # fmt: skip
        write_series(study / "CT Plain", plan, prefix="CT000")
        if number == 0:
            sharp = Series(**{**vars(plan), "series": "1.0.2", "description": "CT BONE", "kernel": "H60s"})
            write_series(study / "CT BONE", sharp, prefix="CT000")
    (root / "reads.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def write_folder(root: Path) -> Path:
    """A plain folder: a patient of three pictures, two loose ones, a NIfTI; one picture has no mask."""
    for number in (1, 2, 10):
        save_gray(root / "images" / "anna" / f"{number}.png", seed=number)
    save_gray(root / "masks" / "anna" / "1.png", value=0 + 20, blood=True)
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(root / "masks" / "anna" / "2.png")
    for name in ("x.png", "y.png"):
        save_gray(root / "images" / name, seed=ord(name[0]))
    save_gray(root / "masks" / "x.png", blood=True)
    save_nifti(root / "images" / "bob.nii.gz", nifti_scan(seed=9))
    save_nifti(root / "masks" / "bob.nii.gz", nifti_mask({2: 1}))
    (root / "labels.csv").write_text("file,patient,any,subdural\ny.png,carl,0,\nx.png,dora,1,1\n", encoding="utf-8")
    return root


WRITERS = {
    "ct_ich": write_ct_ich,
    "ct_ich_nifti": write_ct_ich_nifti,
    "bhsd": write_bhsd,
    "instance": write_instance,
    "rsna": write_rsna,
    "cq500": write_cq500,
    "folder": write_folder,
}


def write_ct_ich_patients(root: Path, patients: int) -> Path:
    """CT-ICH 1.0 with so many patients of three slices; every other one has a drawn epidural bleed in slice 2."""
    rows = [CT_ICH_HEADER]
    for patient in range(1, patients + 1):
        for number in (1, 2, 3):
            bleeds = number == 2 and patient % 2 == 0
            rows.append(f"{patient},{number},0,0,0,{int(bleeds)},0,{int(not bleeds)},0")
            folder = root / "Patients_CT" / f"{patient:03d}" / "brain"
            save_gray(folder / f"{number}.jpg", seed=patient * 10 + number)
            if bleeds:
                save_gray(folder / f"{number}_HGE_Seg.jpg", blood=True)
    (root / "hemorrhage_diagnosis.csv").write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    return root
