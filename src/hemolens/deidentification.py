"""De-identify head CTs: what is not known to be harmless goes, the rest is replaced (DICOM PS3.15 Annex E).

Two steps. First an allow-list: of every object only the elements that an image and its geometry need are kept, at every
depth; descriptions, comments, private elements, overlays, and whatever a later edition of the standard may add are gone
without being named. Then dicognito replaces what must stay and identifies: UIDs, Patient ID, name, accession number,
dates and times, consistently within one run, or within all runs that share a key.

What was done is recorded in each file: *De-identification Method Code Sequence* with the profile and its options.
Pixels are not touched: text in them is warned about, and so are faces, which any head CT can be turned into.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.sr.coding import Code

from hemolens import __version__
from hemolens.errors import ConfigError, DependencyError, InputError, OutputError
from hemolens.sources.dicom.tags import quiet

if TYPE_CHECKING:
    from dicognito.anonymizer import Anonymizer

CT_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})
"""CT Image, Enhanced CT, Legacy Converted Enhanced CT. Nothing else is taken: a dose report is text in pixels."""
KEPT_KEYWORDS = """
    SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID StudyDate SeriesDate AcquisitionDate ContentDate
    AcquisitionDateTime StudyTime SeriesTime AcquisitionTime ContentTime AccessionNumber Modality Manufacturer
    ReferringPhysicianName PatientName PatientID PatientBirthDate PatientSex ContrastBolusAgent BodyPartExamined
    ScanOptions SliceThickness KVP SpacingBetweenSlices DataCollectionDiameter ReconstructionDiameter
    DistanceSourceToDetector DistanceSourceToPatient GantryDetectorTilt TableHeight RotationDirection ExposureTime
    XRayTubeCurrent Exposure FilterType GeneratorPower FocalSpots ConvolutionKernel PatientPosition StudyInstanceUID
    SeriesInstanceUID StudyID SeriesNumber AcquisitionNumber InstanceNumber ImagePositionPatient
    ImageOrientationPatient FrameOfReferenceUID PositionReferenceIndicator SliceLocation SamplesPerPixel
    PhotometricInterpretation NumberOfFrames Rows Columns PixelSpacing BitsAllocated BitsStored HighBit
    PixelRepresentation SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue PixelPaddingRangeLimit
    BurnedInAnnotation RecognizableVisualFeatures WindowCenter WindowWidth RescaleIntercept RescaleSlope RescaleType
    LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod PixelData ContentQualification
    PresentationLUTShape VolumetricProperties VolumeBasedCalculationTechnique FrameType PixelPresentation
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PixelMeasuresSequence PlanePositionSequence
    PlaneOrientationSequence FrameContentSequence FrameVOILUTSequence PixelValueTransformationSequence
    CTImageFrameTypeSequence TemporalPositionIndex DimensionIndexValues
    DimensionOrganizationSequence DimensionOrganizationUID DimensionIndexSequence DimensionIndexPointer
    FunctionalGroupPointer
"""
KEPT = frozenset(KEPT_KEYWORDS.split())
"""Keywords of the elements that may stay, at any depth; dicognito sees to those of them that identify."""
CHARACTERISTICS = frozenset({"PatientSex", "PatientAge", "PatientSize", "PatientWeight"})
EMPTIED = frozenset({"ReferringPhysicianName", "PatientBirthDate", "StudyID", "PositionReferenceIndicator"})
FORMS = {"DA": r"\d{8}", "TM": r"\d{2,6}(\.\d{1,6})?", "DT": r"\d{4,14}(\.\d{1,6})?([+-]\d{4})?"}

PROFILE = Code("113100", "DCM", "Basic Application Confidentiality Profile")
MODIFIED_DATES = Code("113107", "DCM", "Retain Longitudinal Temporal Information Modified Dates Option")
KEPT_CHARACTERISTICS = Code("113108", "DCM", "Retain Patient Characteristics Option")

SHORTEST_KEY = 24
RESCALE_TYPES = frozenset({"HU", "HU_MOD", "US", "OD"})
CORNER_PIXELS = 20
CORNER_HU = 500.0
AIR_INTERCEPT = -1024.0
STANDARD_ROOT = "1.2.840.10008."
THIN_MM = 3.0
RECORD = "deidentification.json"


@dataclass(frozen=True)
class DeidentifyOptions:
    """What may stay, and by which key it is replaced."""

    key: str = ""
    """Replacements follow from it: the same key gives the same pseudonyms. Empty for a new one, thrown away after."""
    keep_characteristics: bool = False
    """Whether sex, age, height and weight stay."""
    allow_burned_in: bool = False
    """Whether to take images that say of themselves that text is burned in."""

    def __post_init__(self) -> None:
        if self.key and (len(self.key) < SHORTEST_KEY or len(set(self.key)) < 8):
            raise ValueError(f"a key has at least {SHORTEST_KEY} characters that cannot be guessed")

    @property
    def codes(self) -> tuple[Code, ...]:
        """Profile and options, as they are recorded."""
        return (PROFILE, MODIFIED_DATES, *((KEPT_CHARACTERISTICS,) if self.keep_characteristics else ()))


@dataclass
class DeidentifyReport:
    """What became of the files."""

    written: int = 0
    series: set[str] = field(default_factory=set)
    refused: dict[Path, str] = field(default_factory=dict)
    """File → why nothing was written for it."""
    skipped: int = 0
    """Files that are no DICOM."""
    text_suspected: list[Path] = field(default_factory=list)
    """Written; bright marks in the corners may be text."""
    thinnest_mm: float | None = None

    def warnings(self) -> list[str]:
        """Return what somebody must look at before the images leave the house, full sentences."""
        told = []
        if self.text_suspected:
            told.append(
                f"{len(self.text_suspected)} images have bright marks in their corners that may be text with a name: "
                "look at them before they leave the house. Pixels were not changed."
            )
        if self.written:
            thin = self.thinnest_mm is not None and self.thinnest_mm <= THIN_MM
            how = f"; slices of {self.thinnest_mm:g} mm show it well" if thin else ""
            told.append(f"A face can be reconstructed from a head CT{how}. Pixels were not changed: share accordingly.")
        return told


def read_key(path: str | Path) -> str:
    """Read the key of the pseudonyms from a file.

    Raises
    ------
    ConfigError
        If the file cannot be read or holds what could be guessed.
    """
    try:
        key = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the key cannot be read. Name a text file that you may read.") from error
    try:
        DeidentifyOptions(key=key or "-")
    except ValueError as error:
        make = "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        raise ConfigError(f"{path}: {error}. {make}") from error
    return key


def deidentify(
    sources: Iterable[str | Path],
    out: str | Path,
    options: DeidentifyOptions | None = None,
    progress: Callable[[int], None] | None = None,
) -> DeidentifyReport:
    """Write de-identified copies of CT images: ``OUT/<patient>/<series>/<instance>.dcm`` under their new names.

    Parameters
    ----------
    sources
        Files and folders of DICOM images.
    out
        A folder that is empty or not there.
    progress
        Called with how many files have been looked at.

    Raises
    ------
    InputError
        If a source is not there, or holds no CT image that could be taken.
    OutputError
        If `out` is not empty, or a file cannot be written.
    DependencyError
        If dicognito is not installed.
    """
    options, target = options or DeidentifyOptions(), Path(out)
    anonymizer = _anonymizer(options)
    files = [file for source in sources for file in _files(Path(source))]
    _check_empty(target)
    report = DeidentifyReport()
    for number, file in enumerate(files, 1):
        _one(file, target, options, anonymizer, report)
        if progress is not None:
            progress(number)
    if not report.written:
        why = Counter(report.refused.values()).most_common(1)
        raise InputError(
            ", ".join(str(s) for s in sources) if not isinstance(sources, Iterator) else "the sources",
            f"no CT image could be taken ({why[0][0] if why else 'there is no DICOM file'})",
            "Name a folder of CT images.",
        )
    _write(target / RECORD, json.dumps(_record(report, options), indent=2).encode())
    return report


def deidentified(dataset: Dataset, anonymizer: Anonymizer, options: DeidentifyOptions) -> Dataset:
    """Return a de-identified copy of one CT image; its pixels are those of the original.

    Parameters
    ----------
    dataset
        As read from a file, with its file meta information.
    anonymizer
        From dicognito; the same one for all images of a study.
    """
    kept = _allowed(dataset, KEPT | (CHARACTERISTICS if options.keep_characteristics else frozenset()))
    for keyword in EMPTIED | (frozenset() if options.keep_characteristics else {"PatientSex"}):
        setattr(kept, keyword, "")
    if kept.get("ContrastBolusAgent"):
        kept.ContrastBolusAgent = "CONTRAST"  # that there was some matters; the free text does not
    for keyword in ("PatientName", "PatientID", "AccessionNumber"):
        if keyword not in kept:
            setattr(kept, keyword, "")
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kept.SOPClassUID, kept.SOPInstanceUID
    kept.file_meta = meta
    anonymizer.anonymize(kept)
    kept.walk(_give_valid_uids)
    meta.walk(_give_valid_uids)
    kept.PatientIdentityRemoved = "YES"
    kept.DeidentificationMethod = [f"hemolens {__version__}", f"dicognito {metadata.version('dicognito')}"]
    kept.DeidentificationMethodCodeSequence = [_item(code) for code in options.codes]
    kept.LongitudinalTemporalInformationModified = "MODIFIED"
    kept.RecognizableVisualFeatures = "YES"
    return kept


def _give_valid_uids(dataset: Dataset, element: DataElement) -> None:
    """Turn UIDs of dicognito, whose root does not exist, into those of 2.25 and a UUID (PS3.5 B.2); always the same."""
    values = _values(element.value) if element.VR == "UI" else []
    new = [v if str(v).startswith(STANDARD_ROOT) else _uid(str(v)) for v in values]
    if new:
        element.value = new if len(new) > 1 else new[0]


def _uid(text: str) -> str:
    return f"2.25.{uuid.UUID(bytes=hashlib.sha256(text.encode()).digest()[:16], version=5).int}"


def _anonymizer(options: DeidentifyOptions) -> Anonymizer:
    try:
        from dicognito.anonymizer import Anonymizer
    except ImportError as error:
        raise DependencyError("dicognito", "pacs") from error
    return Anonymizer(seed=options.key or secrets.token_hex(32))


def _files(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(path for path in source.rglob("*") if path.is_file())
    if not source.is_file():
        raise InputError(source, "there is no such file or folder", "Name a folder of CT images.")
    return [source]


def _check_empty(target: Path) -> None:
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OutputError(f"{target}: is not an empty folder. Name another one with -o.")
    except OSError as error:
        raise OutputError(f"{target}: cannot be looked into ({error.strerror}). Name another one with -o.") from error


def _one(
    file: Path, target: Path, options: DeidentifyOptions, anonymizer: Anonymizer, report: DeidentifyReport
) -> None:
    with quiet():
        try:
            dataset = pydicom.dcmread(file)
            refusal = _refusal(dataset, options)
        except InvalidDicomError:
            report.skipped += 1
            return
        except Exception:  # noqa: BLE001 - damaged files make pydicom raise anything, and it may quote a name
            refusal = "the file is damaged"
        if refusal:
            report.refused[file] = refusal
            return
        suspected, spacing = _text_suspected(dataset), dataset.get("SliceThickness")
        try:
            made = deidentified(dataset, anonymizer, options)
            place = target / _name(made.PatientID) / _name(made.SeriesInstanceUID) / f"{_name(made.SOPInstanceUID)}.dcm"
            _write(place, _encoded(made))
        except OutputError:
            raise
        except Exception:  # noqa: BLE001 - odd values make pydicom and dicognito raise anything
            report.refused[file] = "a value in its header cannot be read"
            return
    report.written += 1
    report.series.add(str(made.SeriesInstanceUID))
    if suspected:
        report.text_suspected.append(file)
    if spacing and (report.thinnest_mm is None or float(spacing) < report.thinnest_mm):
        report.thinnest_mm = float(spacing)


def _refusal(dataset: Dataset, options: DeidentifyOptions) -> str:
    """Return why an object is not taken; empty if it is."""
    if dataset.get("SOPClassUID") not in CT_CLASSES:
        return "no CT image"
    if not all(dataset.get(f"{level}InstanceUID") for level in ("Study", "Series", "SOP")):
        return "a UID is missing"
    if str(dataset.get("BurnedInAnnotation", "")).strip().upper() == "YES" and not options.allow_burned_in:
        return "it says that text is burned into its pixels; look at it, and use --allow-burned-in if it names nobody"
    return ""


def _allowed(dataset: Dataset, keywords: frozenset[str]) -> Dataset:
    """Return what may stay of a data set and of the items inside it; dates and times that are none are emptied."""
    kept = Dataset()
    for element in dataset:
        if element.tag.is_private or element.keyword not in keywords:
            continue
        if element.VR == "SQ":
            setattr(kept, element.keyword, [_allowed(item, keywords) for item in element.value])
            continue
        kept.add(element)
        if element.keyword == "RescaleType" and element.value not in RESCALE_TYPES:
            kept[element.tag].value = "US"
        form = FORMS.get(element.VR)
        if form and not all(re.fullmatch(form, str(v).strip()) for v in _values(element.value)):
            kept[element.tag].value = ""
    return kept


def _values(value: Any) -> list[Any]:
    return (
        []
        if value in (None, "")
        else list(value)
        if isinstance(value, (list, pydicom.multival.MultiValue))
        else [value]
    )


def _text_suspected(dataset: Dataset) -> bool:
    """Whether bright marks stand in the corners, outside the circle that a scanner reconstructs."""
    try:
        pixels: NDArray[Any] = dataset.pixel_array
    except Exception:  # noqa: BLE001 - no decoder, or damaged: then nothing can be said
        return False
    planes = pixels if pixels.ndim == 3 else pixels[None]
    rows, columns = planes.shape[-2:]
    y, x = np.ogrid[:rows, :columns]
    outside = np.hypot((y + 0.5) / rows - 0.5, (x + 0.5) / columns - 0.5) > 0.5
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or AIR_INTERCEPT)
    bright = slope * planes[:, outside].astype(np.float32) + intercept > CORNER_HU
    return bool((bright.sum(axis=1) >= CORNER_PIXELS).any())


def _record(report: DeidentifyReport, options: DeidentifyOptions) -> dict[str, Any]:
    return {
        "hemolens_version": __version__,
        "dicognito_version": metadata.version("dicognito"),
        "codes": [f"{code.value} {code.meaning}" for code in options.codes],
        "images": report.written,
        "series": len(report.series),
        "refused": dict(Counter(report.refused.values())),
        "no_dicom": report.skipped,
        "warnings": report.warnings(),
    }


def _encoded(dataset: Dataset) -> bytes:
    buffer = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return bytes(buffer.getvalue())


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}). Name another folder with -o.") from error


def _name(text: Any) -> str:
    return re.sub(r"[^0-9A-Za-z.]", "_", str(text)) or "unknown"


def _item(code: Code) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item
