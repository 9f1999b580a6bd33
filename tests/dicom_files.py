"""Small DICOM series for tests: any orientation, tilt, spacing, pixel format and transfer syntax, and any defect."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.fileset import FileSet
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

DATA = Path(__file__).parent / "data"
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))


@dataclass(frozen=True)
class Series:
    """What a test series looks like; plain values of an everyday head CT unless told."""

    slices: int = 6
    rows: int = 24
    columns: int = 20
    row_direction: tuple[float, float, float] = AXIAL[0]
    column_direction: tuple[float, float, float] = AXIAL[1]
    origin_mm: tuple[float, float, float] = (-120.0, -110.0, 30.0)
    offsets_mm: tuple[float, ...] = ()
    """Along the table (or normal); default every 5 mm."""
    along: tuple[float, float, float] | None = None
    """Direction in which slices advance; default their normal. Along the table under a tilted gantry."""
    spacing_mm: tuple[float, float] = (10.0, 10.0)
    thickness_mm: float = 5.0
    slope: Any = 1
    intercept: Any = -1024
    signed: bool = False
    stored: int = 12
    allocated: int = 16
    syntax: str = ExplicitVRLittleEndian
    modality: str = "CT"
    sop_class: str = CTImageStorage
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL")
    description: str = "Head 5mm"
    kernel: str = "STANDARD"
    patient: str = "PATIENT-7"
    study: str = "1.2.3.4"
    series: str = "1.2.3.4.5"
    number: int = 2
    extra: dict[str, Any] = field(default_factory=dict)
    """Further elements by keyword; None removes one."""


def pattern(series: Series) -> NDArray[np.int64]:
    """Return stored values that differ in every voxel's neighborhood, shape ``(slices, rows, columns)``."""
    k, r, c = np.mgrid[0 : series.slices, 0 : series.rows, 0 : series.columns]
    low = -1000 if series.signed else 24
    return low + (37 * k + 101 * r + 53 * c) % 1900


def positions(series: Series) -> NDArray[np.float64]:
    """Return the position of each slice, ``(slices, 3)``."""
    offsets = series.offsets_mm or tuple(5.0 * k for k in range(series.slices))
    normal = np.cross(series.row_direction, series.column_direction)
    along = normal if series.along is None else np.asarray(series.along)
    return np.asarray(series.origin_mm) + np.outer(offsets, along)


def slice_dataset(series: Series, index: int, stored: NDArray[Any]) -> Dataset:
    """Return one slice, uncompressed, in the byte order of `series.syntax`."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = series.syntax
    ds.file_meta.MediaStorageSOPClassUID = series.sop_class
    values: dict[str, Any] = {
        "ImageType": list(series.image_type),
        "SOPClassUID": series.sop_class,
        "SOPInstanceUID": f"{series.series}.{index + 1}",
        "StudyDate": "20260102",
        "Modality": series.modality,
        "SeriesDescription": series.description,
        "PatientName": "Doe^Jane",
        "PatientID": series.patient,
        "SliceThickness": series.thickness_mm,
        "ConvolutionKernel": series.kernel,
        "StudyInstanceUID": series.study,
        "SeriesInstanceUID": series.series,
        "SeriesNumber": series.number,
        "InstanceNumber": index + 1,
        "FrameOfReferenceUID": "1.2.3.4.99",
        "ImagePositionPatient": [float(x) for x in positions(series)[index]],
        "ImageOrientationPatient": [float(x) for x in (*series.row_direction, *series.column_direction)],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": series.rows,
        "Columns": series.columns,
        "PixelSpacing": list(series.spacing_mm),
        "BitsAllocated": series.allocated,
        "BitsStored": series.stored,
        "HighBit": series.stored - 1,
        "PixelRepresentation": int(series.signed),
        "RescaleIntercept": series.intercept,
        "RescaleSlope": series.slope,
        **series.extra,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(ds, keyword, value)
    ds.file_meta.MediaStorageSOPInstanceUID = values["SOPInstanceUID"] or generate_uid()
    order = ">" if series.syntax == ExplicitVRBigEndian else "<"
    ds.PixelData = stored.astype(f"{order}{'i' if series.signed else 'u'}{series.allocated // 8}").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def save(ds: Dataset, path: Path, preamble: bool = True) -> Path:
    """Write a dataset whatever is wrong with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    syntax = ds.file_meta.TransferSyntaxUID
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.save_as(
            path,
            enforce_file_format=preamble,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=syntax != ExplicitVRBigEndian,
        )
    return path


def write_series(
    folder: Path,
    series: Series | None = None,
    stored: NDArray[Any] | None = None,
    change: Callable[[int, Dataset], object] | None = None,
    skip: Sequence[int] = (),
    prefix: str = "im",
    preamble: bool = True,
) -> list[Path]:
    """Write a series, one file per slice, under names whose order is not that of the slices.

    Parameters
    ----------
    folder
        Made if need be.
    stored
        Stored values, default `pattern`.
    change
        Called with each slice's index and dataset before it is written.
    skip
        Slices that are not written.
    """
    series = series or Series()
    stored = pattern(series) if stored is None else stored
    paths = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for index in range(series.slices):
            if index in skip:
                continue
            ds = slice_dataset(series, index, stored[index])
            if change is not None:
                change(index, ds)
            scrambled = (index * 7) % 1000
            paths.append(save(ds, folder / f"{prefix}{scrambled:03d}.dcm", preamble))
    return paths


def write_medium(folder: Path, paths: Iterable[Path]) -> Path:
    """Write a CD of `paths` (a DICOMDIR and copies of the files) to `folder` and return that.

    pydicom's FileSet leaves its temporary folder to the garbage collector, which warns in whichever test comes later:
    it is collected here.
    """
    medium = FileSet()
    for path in paths:
        medium.add(path)
    medium.write(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del medium
        gc.collect()
    return folder


def transcode(path: Path, target: str, near: int = 0) -> Path:
    """Encode a file in place with GDCM; `near` is the largest error of near-lossless JPEG-LS."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(target)))
    if near:
        codec = gdcm.JPEGLSCodec()
        codec.SetLossless(False)
        codec.SetLossyError(near)
        change.SetUserCodec(codec)
    change.SetInput(reader.GetImage())
    assert change.Change(), target
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return path


def compress_lossy_j2k(ds: Dataset, ratio: float) -> None:
    """Encode a dataset as lossy JPEG 2000 with OpenJPEG."""
    ds.compress(JPEG2000, j2k_cr=[ratio], generate_instance_uid=False)


def set_frame(ds: Dataset, frame: bytes, syntax: str) -> None:
    """Replace the pixels by one encoded frame."""
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True


def htj2k_picture() -> NDArray[np.int64]:
    """Return the stored values of ``tests/data/htj2k_*.j2c``, shape ``(64, 48)``."""
    y, x = np.mgrid[0:64, 0:48]
    return np.where((x - 24) ** 2 / 20**2 + (y - 32) ** 2 / 28**2 < 1, 30 + (7 * x + 13 * y) % 23, -1000) + 1024


def enhanced_dataset(series: Series, stored: NDArray[Any] | None = None) -> Dataset:
    """Return the whole series as one enhanced CT (PS3.3 A.38): geometry and rescale in functional groups."""
    stored = pattern(series) if stored is None else stored
    ds = slice_dataset(series, 0, stored[0])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(ds, keyword)
    ds.NumberOfFrames = series.slices
    ds.PixelData = stored.astype("<i2" if series.signed else "<u2").tobytes()
    shared, plane, measures, transform, kind = Dataset(), Dataset(), Dataset(), Dataset(), Dataset()
    plane.ImageOrientationPatient = [*series.row_direction, *series.column_direction]
    measures.PixelSpacing, measures.SliceThickness = list(series.spacing_mm), series.thickness_mm
    transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = series.slope, series.intercept, "HU"
    kind.FrameType = list(series.image_type)
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    shared.PixelValueTransformationSequence, shared.CTImageFrameTypeSequence = [transform], [kind]
    ds.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for position in positions(series):
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = [float(x) for x in position]
        group.PlanePositionSequence = [place]
        frames.append(group)
    ds.PerFrameFunctionalGroupsSequence = frames
    return ds
