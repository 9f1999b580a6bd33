"""What a network says about a scan, before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hemolens.inference.outline import outline_blood
from hemolens.labels import FINDING_NAMES


@dataclass(frozen=True)
class ModelIdentity:
    """Which weights were used."""

    name: str
    sha256: str
    card: dict[str, Any]
    """The whole model card: data, split, seed, commit, metrics, calibration, license."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """Probabilities on the source grid.

    Parameters
    ----------
    blood
        Probability that a voxel is blood, float16, shape ``(slices, rows, columns)`` of the volume.
    subtype
        Most likely subtype (1 to 5) of each voxel wherever `blood` reaches `subtype_floor`, else 0; uint8, same shape.
    slice_probability
        Calibrated probability of each of `FINDING_NAMES` for each slice, float32, shape ``(slices, 6)``.
    study_probability
        The same for the whole scan, shape ``(6,)``.
    study_interval
        Lower and upper probability of any hemorrhage in the scan (Venn-Abers),
        or None where the card has no calibration set.
    mask_threshold
        `blood` at or above this is outlined ...
    mask_seed
        ... where, within its slice, it is connected to blood at or above this; None: everywhere.
    study_threshold
        The scan is called positive at or above this probability of "any".
    model
        Which weights were used.
    study_band
        Probabilities of any hemorrhage from and up to which a human should look first (conformal);
        None where the card has too few validation scans.
    sensitive_threshold
        The threshold that found 95 % of the bleeding validation scans; None where the card names none.
    volume_log_ratio
        For `hemolens.inference.calibrate.volume_interval`; None where the card has too few known volumes.
    edema
        Probability that a voxel is perihematomal edema, shape of `blood`; None for a network that does not tell.
    """

    blood: NDArray[np.float16]
    subtype: NDArray[np.uint8]
    slice_probability: NDArray[np.float32]
    study_probability: NDArray[np.float32]
    study_interval: tuple[float, float] | None
    mask_threshold: float
    study_threshold: float
    model: ModelIdentity
    edema: NDArray[np.float16] | None = None
    study_band: tuple[float, float] | None = None
    sensitive_threshold: float | None = None
    volume_log_ratio: tuple[float, float] | None = None
    mask_seed: float | None = None

    def __post_init__(self) -> None:
        n = len(self.blood)
        if self.edema is not None and self.edema.shape != self.blood.shape:
            raise ValueError(f"edema has shape {self.edema.shape}, blood {self.blood.shape}")
        if self.subtype.shape != self.blood.shape:
            raise ValueError(f"subtype has shape {self.subtype.shape}, blood {self.blood.shape}")
        if self.slice_probability.shape != (n, len(FINDING_NAMES)) or self.study_probability.shape != (
            len(FINDING_NAMES),
        ):
            raise ValueError("slice or study probabilities do not have one column per finding")

    @cached_property
    def outlined(self) -> NDArray[np.bool_]:
        """Where blood is outlined, shape of `blood` (`hemolens.inference.outline`)."""
        return outline_blood(self.blood, self.mask_threshold, self.mask_seed)

    @property
    def positive(self) -> bool:
        """Whether the scan is called positive for any hemorrhage."""
        return bool(self.study_probability[0] >= self.study_threshold)

    @property
    def uncertain(self) -> bool:
        """Whether a human should look first: scans of either kind had such a probability, or none had."""
        if self.study_band is None:
            return False
        low, high = self.study_band
        return bool(low <= self.study_probability[0] <= high)
