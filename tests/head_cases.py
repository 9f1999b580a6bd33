"""A data set of drawn heads in files, with every state of mask, that counts how often it is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hemolens.geometry import Stack
from hemolens.preprocessing.window import to_hu
from hemolens.sources.datasets.cases import UNKNOWN, Case, SliceRecord
from hemolens.volume import SourceInfo, Volume

NAN = float("nan")
CLEAN = (0.0,) * 6
BLEEDING = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PSEUDO = (1.0, 0.0, 0.0, NAN, 1.0, NAN)
NOTHING = (NAN,) * 6
SIDE = 96


def head(seed: int = 0, side: int = SIDE) -> np.ndarray:
    """One slice of a noisy brain with dark ventricles and furrows, gray values."""
    rng = np.random.default_rng(seed)
    scale = 224 / side
    y, x = (np.mgrid[:side, :side] + 0.5) * scale - 112
    radius = np.hypot(y / 1.1, x)
    image = np.where(radius < 95, 255.0, 0.0)
    inside = radius < 82
    image[inside] = 113
    image[(radius > 68) & inside & (np.sin(np.arctan2(y, x) * 22) > 0.6)] = 72
    image[(abs(y) < 22) & (abs(abs(x) - 9) < 6)] = 55
    noisy = image + rng.normal(0, 5, image.shape) * inside
    return np.clip(noisy, 0, 255).astype(np.uint8)


@dataclass(eq=False)
class Heads:
    """See `hemolens.sources.datasets.cases.DataSet`."""

    root: Path
    states: dict[str, str]
    """Patient to one letter a slice: c clean, w weak, d drawn, p pseudo, u unknown."""
    name: str = "ct_ich"
    license: str = "none"
    trainable: bool = True
    notes: tuple[str, ...] = ()
    stacks: dict[str, Stack] = field(default_factory=dict)
    scan_findings: dict[str, tuple[float, ...]] = field(default_factory=dict)
    side: int = SIDE

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        kinds = {
            "c": (CLEAN, "empty"), "w": (BLEEDING, "unknown"), "d": (BLEEDING, "drawn"), "p": (PSEUDO, "pseudo"),
            "u": (NOTHING, "unknown"),
        }  # fmt: skip
        self.cases = tuple(
            Case(
                self.name, patient, "", tuple(SliceRecord(str(k + 1), *kinds[s]) for k, s in enumerate(told)),
                self.scan_findings.get(patient),
            )
            for patient, told in self.states.items()
        )  # fmt: skip
        for number, case in enumerate(self.cases):
            images = np.stack([head(number * 100 + k, self.side) for k in range(len(case.slices))])
            labels = np.zeros(images.shape, np.uint8)
            a, b = self.side * 4 // 10, self.side // 2
            for k, record in enumerate(case.slices):
                if record.mask_state == "unknown":
                    labels[k] = UNKNOWN
                elif record.mask_state != "empty":
                    labels[k, a:b, a:b] = 4 if record.mask_state == "drawn" else 6
                if record.findings[0] == 1:
                    images[k, a:b, a:b] = 185
            np.savez(self._file(case), images=images, labels=labels)

    def _file(self, case: Case) -> Path:
        return self.root / f"{case.patient}.npz"

    def _log(self, case: Case) -> None:
        with (self.root / "read.log").open("a") as file:
            file.write(case.patient + "\n")

    @property
    def reads(self) -> list[str]:
        """Which patients' pixels were read, in any process."""
        log = self.root / "read.log"
        return log.read_text().split() if log.exists() else []

    def volume(self, case: Case) -> Volume:
        self._log(case)
        hu = to_hu(np.load(self._file(case))["images"])
        numbers = tuple(int(record.name) for record in case.slices)
        return Volume(hu, self.stacks.get(case.patient), SourceInfo("images", str(self.root), slice_numbers=numbers))

    def labels(self, case: Case) -> np.ndarray:
        return np.asarray(np.load(self._file(case))["labels"])

    def files(self, case: Case) -> tuple[Path, ...]:
        return (self._file(case),)
