"""Small data sets and models with known answers, for everything that evaluates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from hemolens.errors import InputError
from hemolens.inference.calibrate import UNCALIBRATED, Calibration
from hemolens.inference.predictor import Predictor, Scores
from hemolens.inference.registry import Interface, Model, Thresholds
from hemolens.preprocessing.pipeline import Prepared, PreprocessConfig, prepare
from hemolens.sources.datasets.cases import UNKNOWN, UNKNOWN_FINDINGS, Case, MaskState, SliceRecord
from hemolens.volume import Volume
from predictions import phantom_head

ANY_BLOOD = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CLEAN = (0.0,) * 6
BLOOD_HU = 75
Tell = Literal["all", "mask", "blood", "slices", "scan", "sequence", "edema"]


@dataclass(eq=False)
class Bleed:
    """A box of blood (or of what looks like it) in a phantom head."""

    slices: range
    rows: range
    columns: range

    def paint(self, array: np.ndarray, value: float) -> None:
        array[np.ix_(self.slices, self.rows, self.columns)] = value


@dataclass(eq=False)
class Scan:
    """A phantom with its truth."""

    case: Case
    volume: Volume
    labels: np.ndarray


def small_head(slices: int = 8) -> Volume:
    """Pixels of 4 mm on slices of 5 mm."""
    return phantom_head(slices=slices, gap_mm=5.0, size=64, pixel_mm=4.0)


def scan(
    patient: str,
    *,
    true: Sequence[Bleed] = (),
    looks: Sequence[Bleed] | None = None,
    states: Callable[[int, bool], MaskState] | None = None,
    label: int = 4,
    dataset: str = "toy",
    study: str = "",
    slices: int = 8,
    volume: Volume | None = None,
) -> Scan:
    """Make a scan whose blood is where `true` says, and which looks bloody where `looks` says (default: there)."""
    head = volume or small_head(slices)
    hu, labels = head.hu.copy(), np.zeros(head.shape, dtype=np.uint8)
    for bleed in true if looks is None else looks:
        bleed.paint(hu, BLOOD_HU)
    for bleed in true:
        bleed.paint(labels, label)
    records = []
    for k in range(len(head)):
        bleeds = bool((labels[k] > 0).any())
        state = states(k, bleeds) if states else ("drawn" if bleeds else "empty")
        findings = ANY_BLOOD if bleeds else CLEAN
        records.append(SliceRecord(f"{k + 1}", UNKNOWN_FINDINGS if state == "unknown" else findings, state))
        if state == "unknown":
            labels[k] = UNKNOWN
    return Scan(Case(dataset, patient, study, tuple(records)), replace(head, hu=hu), labels)


@dataclass(eq=False)
class ToySet:
    """A data set in memory, in the shape of `hemolens.sources.datasets.cases.DataSet`."""

    scans: Sequence[Scan]
    name: str = "toy"
    license: str = "CC0"
    trainable: bool = True
    notes: tuple[str, ...] = ()
    broken: frozenset[str] = frozenset()
    root: Path = Path("toy")
    read: list[str] = field(default_factory=list)
    """Cases whose labels were asked for."""

    @property
    def cases(self) -> tuple[Case, ...]:
        return tuple(s.case for s in self.scans)

    def volume(self, case: Case) -> Volume:
        if case.patient in self.broken:
            raise InputError(f"{case.patient}.dcm", "cannot be read", "Download it again.")
        return next(s.volume for s in self.scans if s.case is case)

    def labels(self, case: Case) -> np.ndarray:
        self.read.append(case.id)
        return next(s.labels for s in self.scans if s.case is case)

    def files(self, case: Case) -> tuple[Path, ...]:
        return ()


def card_model(
    tell: Tell = "all", card: dict[str, Any] | None = None, calibration: Calibration = UNCALIBRATED
) -> Model:
    kinds = {
        "all": Interface(),
        "mask": Interface(findings=False),
        "blood": Interface(mask_channels=1, findings=False),
        "slices": Interface(mask_channels=0),
        "scan": Interface(sample="volume", channels=1, mask_channels=0, depth=8),
        "sequence": Interface(sample="scan", mask_channels=0),
        "edema": Interface(mask_channels=7),
    }
    preprocess = PreprocessConfig(size=64)
    return Model(
        "toy-net", Path("toy.onnx"), "0" * 64, preprocess, calibration, Thresholds(0.5, 0.5), card or {}, kinds[tell]
    )


class ToyPredictor(Predictor):
    """Takes for intraparenchymal blood whatever is as bright as it; tells only what its kind of network would."""

    def __init__(self, tell: Tell = "all", card: dict[str, Any] | None = None, shift: float = 0.0) -> None:
        self.model = card_model(tell, card)
        self.tell = tell
        self.shift = shift
        """Added to every logit."""

    def prepare(self, volume: Volume) -> Prepared:
        return prepare(volume, self.model.preprocess)

    def run(self, prepared: Prepared, progress: Callable[[float], None] | None = None) -> Scores:
        hu = prepared.crops.astype(np.float32) / 255 * 120 - 20
        bright = np.clip((hu - 50) / 20, 0, 1) * np.clip((90 - hu) / 5, 0, 1)
        # What is thinner than three pixels is the blur between brain and bone.
        blood = ndimage.grey_opening(bright, (1, 3, 3)) * prepared.gates
        subtypes = np.zeros((len(blood), 5, *blood.shape[1:]), dtype=np.float32)
        subtypes[:, 3] = 1.0
        share = blood.reshape(len(blood), -1).sum(axis=1)
        logits = np.full((len(blood), 6), -4.0, dtype=np.float32)
        logits[:, 0] = logits[:, 4] = np.log1p(share) - 3 + self.shift
        dark = np.clip((25 - hu) / 5, 0, 1) * np.clip((hu - 5) / 5, 0, 1)
        swollen = ndimage.grey_opening(dark, (1, 3, 3)) * prepared.gates
        has_mask = self.tell in ("all", "mask", "blood", "edema")
        return Scores(
            blood.astype(np.float32) if has_mask else None,
            subtypes if self.tell in ("all", "mask", "edema") else None,
            logits if self.tell in ("all", "slices", "sequence", "edema") else None,
            logits.max(axis=0) if self.tell in ("scan", "sequence") else None,
            swollen.astype(np.float32) if self.tell == "edema" else None,
        )


def study(count: int = 12, dataset: str = "toy") -> ToySet:
    """Patients 0 to `count` - 1; every fourth is clean, every fifth bleed is missed, one clean head looks bloody."""
    scans = []
    for number in range(count):
        there = Bleed(range(3, 5), range(25, 28 + number // 2), range(30, 36))
        elsewhere = Bleed(range(5, 6), range(35, 39), range(25, 29))
        if number % 4 == 0:
            scans.append(scan(f"{number:03d}", looks=(elsewhere,) if number == 4 else (), dataset=dataset))
        else:
            looks = () if number % 5 == 0 else None
            scans.append(scan(f"{number:03d}", true=(there,), looks=looks, dataset=dataset))
    return ToySet(scans, dataset)
