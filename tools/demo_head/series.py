"""The scan protocol: where each slice lies, what is seen there, and the CT images that are written."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from demo_head.bleeds import NAMES
from demo_head.fields import Field
from demo_head.head import Head
from demo_head.scanner import Scanner, scan

CT_IMAGE_STORAGE = pydicom.uid.CTImageStorage
INTERCEPT = -1024
FIELD_MM = 118.0
"""Radius of the reconstructed circle."""


@dataclass(frozen=True)
class Protocol:
    """Axial slices with a tilted gantry: the table moves straight, the slices lean."""

    slices: int = 30
    thickness_mm: float = 5.0
    tilt_deg: float = 12.0
    first_mm: float = -52.0
    scanner: Scanner = field(default_factory=Scanner)

    @property
    def row_direction(self) -> np.ndarray:
        """Along a row, LPS."""
        return np.array([1.0, 0.0, 0.0])

    @property
    def column_direction(self) -> np.ndarray:
        """Along a column, LPS: to the back and, as the gantry leans, down."""
        tilt = np.radians(self.tilt_deg)
        return np.array([0.0, np.cos(tilt), -np.sin(tilt)])

    @property
    def normal(self) -> np.ndarray:
        """Slice normal."""
        return np.cross(self.row_direction, self.column_direction)

    @property
    def table_step_mm(self) -> float:
        """How far the table moves so that slices of `thickness_mm` touch."""
        return self.thickness_mm / float(np.cos(np.radians(self.tilt_deg)))

    def position_mm(self, index: int) -> np.ndarray:
        """Return the center of the first pixel of slice `index`, LPS."""
        middle = np.array([0.0, 0.0, self.first_mm + index * self.table_step_mm])
        half = (self.scanner.size - 1) / 2 * self.scanner.pixel_mm
        return middle - half * (self.row_direction + self.column_direction)

    def points_mm(self, index: int, above_mm: float = 0.0, shift_px: tuple[float, float] = (0.0, 0.0)) -> Field:
        """Return every pixel's place in slice `index`, ``(size², 3)``, moved along the normal and within the pixel."""
        steps = np.arange(self.scanner.size) * self.scanner.pixel_mm
        rows = (steps + shift_px[0] * self.scanner.pixel_mm)[:, None, None] * self.column_direction
        columns = (steps + shift_px[1] * self.scanner.pixel_mm)[None, :, None] * self.row_direction
        return np.float32(self.position_mm(index) + above_mm * self.normal + rows + columns).reshape(-1, 3)


def centered(count: int, width: float) -> np.ndarray:
    """Return `count` even places that share `width` about 0."""
    return ((np.arange(count) + 0.5) / count - 0.5) * width


def render(protocol: Protocol, head: Head, index: int, seed: int, parts: int = 7) -> np.ndarray:
    """Return slice `index` as the scanner shows it: int16 HU, averaged over `parts` of the slice's thickness."""
    size = protocol.scanner.size
    exact = np.zeros(size * size, np.float32)
    for above in centered(parts, protocol.thickness_mm):
        exact += head.hu(protocol.points_mm(index, above)) / parts
    image = scan(protocol.scanner, exact.reshape(size, size), np.random.default_rng([seed, 2, index]))
    offsets = (np.arange(size) - (size - 1) / 2) * protocol.scanner.pixel_mm
    image[np.hypot(offsets[:, None], offsets[None, :]) > FIELD_MM] = INTERCEPT
    return np.clip(np.rint(image), INTERCEPT, 4095 + INTERCEPT).astype(np.int16)


def true_labels(protocol: Protocol, head: Head, index: int, parts: tuple[int, int] = (10, 3)) -> dict[str, Field]:
    """Return the share of each voxel of slice `index` that each bleed fills, ``(size, size)`` float32 by name.

    Every voxel is asked at ``parts[0]`` heights times ``parts[1]`` squared places.
    """
    size = protocol.scanner.size
    shares = {name: np.zeros(size * size, np.float32) for name in NAMES}
    near = None
    for above in centered(parts[0], protocol.thickness_mm):
        for down in centered(parts[1], 1.0):
            for right in centered(parts[1], 1.0):
                points = protocol.points_mm(index, above, (down, right))
                if near is None:
                    near = _near(protocol, head, index)
                for name, distance in head.bleeds(points[near]).items():
                    shares[name][near] += (distance < 0) / (parts[0] * parts[1] ** 2)
    return {name: share.reshape(size, size) for name, share in shares.items()}


def _near(protocol: Protocol, head: Head, index: int) -> np.ndarray:
    """Return the pixels that a bleed could touch: within 6 mm of one."""
    near = np.zeros(protocol.scanner.size**2, bool)
    for above in (-protocol.thickness_mm / 2, 0.0, protocol.thickness_mm / 2):
        for distance in head.bleeds(protocol.points_mm(index, above)).values():
            near |= distance < 6.0
    return near


def uid(*words: object) -> str:
    """Return the same UID for the same words."""
    return generate_uid(entropy_srcs=["hemolens demo", *map(str, words)])


def ct_image(protocol: Protocol, index: int, image: np.ndarray, seed: int, version: str) -> Dataset:
    """Return slice `index` as a CT Image (PS3.3 A.3), JPEG 2000 lossless."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CT_IMAGE_STORAGE
    meta.MediaStorageSOPInstanceUID = uid("instance", seed, version, index)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    _describe_study(ds, seed, version)
    _describe_acquisition(ds, protocol)
    _describe_slice(ds, protocol, index)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = protocol.scanner.size
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = INTERCEPT, 1, "HU"
    ds.WindowCenter, ds.WindowWidth = 40, 80
    ds.LossyImageCompression = "00"
    ds.BurnedInAnnotation = "NO"
    ds.PixelData = (image.astype(np.int32) - INTERCEPT).astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    return ds


def _describe_study(ds: Dataset, seed: int, version: str) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SyntheticData = "YES"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20260101"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "120000"
    ds.AccessionNumber = ""
    ds.Modality = "CT"
    ds.Manufacturer = "hemolens"
    ds.InstitutionName = "None: a computed phantom"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "HEMOLENS PHANTOM HEAD, KNOWN BLEEDS"
    ds.SeriesDescription = "HEAD 5.0 STANDARD (PHANTOM)"
    ds.ManufacturerModelName = "make_demo"
    ds.SoftwareVersions = version
    ds.PatientName, ds.PatientID = "HEMOLENS^PHANTOM", "HEMOLENS-PHANTOM"
    ds.PatientBirthDate, ds.PatientSex = "", "O"
    ds.PatientIdentityRemoved, ds.DeidentificationMethod = "YES", "No patient: computed"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid("study", seed, version), uid("series", seed, version)
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber = "1", 2, 1
    ds.FrameOfReferenceUID = uid("frame", seed, version)
    ds.PositionReferenceIndicator = "OM"


def _describe_acquisition(ds: Dataset, protocol: Protocol) -> None:
    ds.BodyPartExamined, ds.PatientPosition = "HEAD", "HFS"
    ds.ScanOptions = "AXIAL MODE"
    ds.SliceThickness = _decimal(protocol.thickness_mm)
    ds.KVP = "120"
    ds.DataCollectionDiameter = "250"
    ds.ReconstructionDiameter = _decimal(protocol.scanner.size * protocol.scanner.pixel_mm)
    ds.GantryDetectorTilt = _decimal(protocol.tilt_deg)
    ds.TableHeight, ds.RotationDirection = "150", "CW"
    ds.ExposureTime, ds.XRayTubeCurrent, ds.Exposure = "1000", "220", "220"
    ds.FilterType, ds.ConvolutionKernel = "HEAD FILTER", "STANDARD"


def _describe_slice(ds: Dataset, protocol: Protocol, index: int) -> None:
    ds.InstanceNumber = index + 1
    ds.ImagePositionPatient = [_decimal(v) for v in protocol.position_mm(index)]
    ds.ImageOrientationPatient = [_decimal(v) for v in (*protocol.row_direction, *protocol.column_direction)]
    ds.SliceLocation = _decimal(protocol.first_mm + index * protocol.table_step_mm)
    ds.PixelSpacing = [_decimal(protocol.scanner.pixel_mm)] * 2
    ds.ImageComments = "Computed phantom, not a patient"


def _decimal(value: float) -> str:
    """Write a decimal string of at most 16 bytes (PS3.5 6.2)."""
    return f"{value:.8f}".rstrip("0").rstrip(".")[:16] if value else "0"
