"""The models that ship, each an ONNX file and a JSON card; nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from hemolens.config import from_mapping, suggestion
from hemolens.errors import ConfigError, ModelError
from hemolens.inference.calibrate import Calibration
from hemolens.inference.prediction import ModelIdentity
from hemolens.preprocessing.pipeline import PreprocessConfig

DEFAULT_MODEL = "ich-effunet2d-12"
RUN_CARD = "model.json"
"""Name of the card in the folder of a training run."""
SampleKind = Literal["slice", "volume", "scan"]


@dataclass(frozen=True)
class Interface:
    """What a network takes and tells; a card without it is an `effunet2d`'s."""

    sample: SampleKind = "slice"
    """Slices one by one, volumes (windows of slices), or whole scans slice by slice."""
    channels: int = 3
    """Images shown for each slice: 1, or 3 with its neighbors."""
    mask_channels: int = 6
    """0: no mask; 1: blood; 6: blood, then the subtypes given blood; 7: edema as well."""
    findings: bool = True
    """Whether findings are told: of each slice, of the volume, or of each slice and the scan."""
    depth: int = 0
    """Slices of the windows in which volumes are run; 0 for the others."""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3) or self.mask_channels not in (0, 1, 6, 7):
            raise ValueError("channels must be 1 or 3, mask_channels 0, 1, 6 or 7")
        if (self.sample == "volume") != (self.depth > 0):
            raise ValueError("volumes need a depth, and nothing else has one")

    def check(self, preprocess: PreprocessConfig) -> None:
        """Make sure that the network can be shown what `preprocess` asks for.

        Raises
        ------
        ValueError
            If it cannot.
        """
        if preprocess.enlarge_below and self.sample != "slice":
            raise ValueError("preprocess.enlarge_below is for networks that read slices one by one; leave it at 0")


@dataclass(frozen=True)
class Thresholds:
    """Chosen on validation patients; see the card for how."""

    mask: float
    """A voxel at or above this is outlined ..."""
    study: float
    """A scan at or above this probability of any hemorrhage is called positive: balanced, by Youden's index."""
    sensitive: float | None = None
    """The probability that 95 % of the bleeding validation scans reach; None where nobody chose it."""
    seed: float | None = None
    """... where, within its slice, it is connected to a voxel at or above this; None: everywhere."""

    @property
    def mask_told(self) -> str:
        """Say in words where blood is outlined."""
        told = f"where its probability is {self.mask:g} or more"
        return told if self.seed is None else f"{told}, connected in its slice to {self.seed:g} or more"


@dataclass(frozen=True)
class Model:
    """A network file together with what its card says of its use."""

    name: str
    path: Path
    sha256: str
    preprocess: PreprocessConfig
    calibration: Calibration
    thresholds: Thresholds
    card: Mapping[str, Any]
    """The whole card."""
    interface: Interface = Interface()

    def __post_init__(self) -> None:
        self.interface.check(self.preprocess)

    @property
    def calibrated(self) -> bool:
        """Whether the card's probabilities were fitted on patients."""
        return len(self.calibration.study_scores) > 0

    @property
    def identity(self) -> ModelIdentity:
        """What a prediction carries of it."""
        return ModelIdentity(self.name, self.sha256, dict(self.card))

    def verified_bytes(self) -> bytes:
        """Return the network file.

        Raises
        ------
        ModelError
            If it is missing or its SHA-256 is not the card's.
        """
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise ModelError(
                f"{self.path}: the network file cannot be read ({error.strerror}). Reinstall hemolens."
            ) from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ModelError(
                f"{self.path}: the network file is not the one that its card describes. Reinstall hemolens."
            )
        return content


def model_names() -> tuple[str, ...]:
    """Return the names of the models inside the package."""
    return tuple(sorted(card.stem for card in _folder().glob("*.json")))


def list_models() -> tuple[Model, ...]:
    """Return every model inside the package, the default one first."""
    found = [load_model(str(card)) for card in sorted(_folder().glob("*.json"))]
    return tuple(sorted(found, key=lambda m: (m.name != DEFAULT_MODEL, m.name)))


def load_model(name: str | None = None) -> Model:
    """Return the model called `name`, or the default one.

    Parameters
    ----------
    name
        Of a model that ships, or the path of a card, of a network file with its card beside it, or of a run folder.

    Raises
    ------
    ModelError
        If there is none, or its card cannot be used.
    """
    card = _card_path(name or DEFAULT_MODEL)
    try:
        values = json.loads(card.read_text(encoding="utf-8"))
        return Model(
            name=str(values["name"]),
            path=card.with_name(str(values["file"])),
            sha256=str(values["sha256"]),
            preprocess=from_mapping(PreprocessConfig, values["preprocess"], "preprocess"),
            calibration=from_mapping(Calibration, values["calibration"], "calibration"),
            thresholds=from_mapping(Thresholds, values["thresholds"], "thresholds"),
            card=values,
            interface=from_mapping(Interface, values.get("interface", {}), "interface"),
        )
    except OSError as error:
        raise ModelError(f"{card}: the model card cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, ConfigError) as error:
        raise ModelError(f"{card}: is no model card of this version of hemolens ({error}).") from error


def _folder() -> Path:
    return Path(str(resources.files("hemolens"))) / "models" / "weights"


def _card_path(name: str) -> Path:
    if Path(name).is_dir():
        card = Path(name) / RUN_CARD
        if not card.is_file():
            raise ModelError(
                f"{name}: holds no {RUN_CARD}. Name the folder of a training run that has ended, or a model card."
            )
        return card
    if name.endswith((".json", ".onnx")):
        card = Path(name).with_suffix(".json")
        if not card.is_file():
            raise ModelError(f"{card}: no model card there. A network needs its card beside it.")
        return card
    card = _folder() / f"{name}.json"
    if not card.is_file():
        known = [p.stem for p in _folder().glob("*.json")]
        raise ModelError(
            f"There is no model called '{name}'.{suggestion(name, known) if known else ' None is installed.'}"
        )
    return card
