"""Every setting of a training run, frozen, saved with the weights that it made, and the presets that ship."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from hemolens.config import from_mapping, suggestion, to_mapping, with_overrides
from hemolens.errors import ConfigError
from hemolens.models.effunet2d import EffUNetConfig
from hemolens.models.registry import NetworkConfig
from hemolens.preprocessing.pipeline import PreprocessConfig
from hemolens.training.augment import AugmentConfig
from hemolens.training.data import DataConfig
from hemolens.training.losses import LossConfig
from hemolens.training.schedule import OptimizerConfig, ScheduleConfig
from hemolens.training.synthesis import SynthesisConfig


@dataclass(frozen=True)
class TrainConfig:
    """One training run: either `steps` or `epochs` must be given.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    network: NetworkConfig = field(default_factory=EffUNetConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    steps: int = 0
    """Length of the run; 0 where `epochs` says it."""
    epochs: int = 0
    """Passes over the training data; 0 where `steps` says it."""
    batch: int = 16
    """Samples in a step, of all processes together."""
    seed: int = 0
    start: str = ""
    """Folder of a run (or a ``.pt`` file of one) or name of a model that ships, whose weights to go on from; empty to
    begin anew."""
    start_anew: tuple[str, ...] = ()
    """Parts of the network, such as slice_head, that begin anew in place of taking the weights of `start`."""
    precision: Literal["32", "bf16", "16"] = "32"
    """Of the arithmetic inside the network; weights stay 32-bit. 16 needs a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    nodes: int = 1
    """Machines that work together; torchrun starts the processes of each."""
    validate_every: int = 0
    """Steps between validations; 0 for one after every pass over the training data."""
    select: Literal["loss", "dice", "auc", "last"] = "loss"
    """Which weights are kept: those of the lowest validation loss, the highest pooled Dice on drawn and empty masks,
    the highest ROC-AUC of "any" per sample, or simply the last ones."""
    stop_after: int = 0
    """Validations without improvement before the run ends early; 0 to never do so."""
    log_every: int = 20
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    tensorboard: bool = True
    research_data: bool = False
    """Allow training on data sets that are for research use only; the weights then are, too."""

    def __post_init__(self) -> None:
        if min(self.steps, self.epochs) < 0 or (self.steps > 0) == (self.epochs > 0):
            raise ValueError("set either steps or epochs (above 0), and leave the other at 0")
        if min(self.batch, self.nodes, self.log_every, self.checkpoint_every) < 1:
            raise ValueError("batch, nodes, log_every and checkpoint_every must be at least 1")
        if min(self.seed, self.validate_every, self.stop_after) < 0:
            raise ValueError("seed, validate_every and stop_after must be at least 0")
        if self.stop_after and self.select == "last":
            raise ValueError("stop_after needs a score to watch: set select to loss, dice or auc")
        if self.schedule.name == "plateau" and self.select == "last":
            raise ValueError("schedule plateau needs a score to watch: set select to loss, dice or auc")
        if self.precision == "16" and self.device == "cpu":
            raise ValueError("precision 16 needs a GPU; on the CPU use bf16")


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets that ship."""
    return tuple(sorted(p.stem for p in _folder().glob("*.toml")))


def load_preset(name: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Return a preset by its name, or the settings in a TOML file by its path, with `overrides` by dotted key.

    Setting ``steps`` takes the place of a preset's ``epochs``, and the other way round.

    Raises
    ------
    ConfigError
        If there is no such preset or setting (the nearest name is suggested), or a value does not fit.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = _folder() / f"{name}.toml"
        if not path.is_file():
            raise ConfigError(f"There is no preset called '{name}'.{suggestion(str(name), preset_names())}")
    return _changed(read_toml(path), overrides or {}, str(name))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    ConfigError
        If it is not there or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is no TOML file ({error}).") from error


def _changed(values: Mapping[str, Any], overrides: Mapping[str, Any], where: str) -> TrainConfig:
    try:
        config = from_mapping(TrainConfig, values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    lengths = {"steps": "epochs", "epochs": "steps"}
    filled = {other: 0 for key, other in lengths.items() if key in overrides and other not in overrides}
    return with_overrides(config, {**filled, **overrides}) if overrides else config


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Read ``key=value`` words; values are written as in TOML, and text needs no quotes.

    Raises
    ------
    ConfigError
        If a word is no ``key=value``, or a key comes twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"'{word}' is no setting: write key=value, such as optimizer.rate=1e-3.")
        if key.strip() in found:
            raise ConfigError(f"{key.strip()} is set twice.")
        found[key.strip()] = parse_value(value.strip())
    return found


def parse_value(text: str) -> Any:
    """Return the value that `text` writes in TOML, or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return float(text)  # .5 and 5. are no TOML
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def to_toml(values: Mapping[str, Any]) -> str:
    """Write plain nested values as TOML; what is None is left out."""
    return "\n".join(_toml_lines(values, "")).strip() + "\n"


def _toml_lines(values: Mapping[str, Any], name: str) -> list[str]:
    plain = {k: v for k, v in values.items() if v is not None and not isinstance(v, Mapping)}
    lines = [f"{key} = {_toml_value(value)}" for key, value in plain.items()]
    if name and lines:
        lines.insert(0, f"\n[{name}]")
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += _toml_lines(value, f"{name}.{key}" if name else key)
    return lines


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml_value(v) for v in value)}]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def save_config(config: TrainConfig, path: Path) -> None:
    """Write every setting, defaults too, as TOML that `load_preset` reads back to an equal one."""
    path.write_text(to_toml(to_mapping(config)), encoding="utf-8")


def _folder() -> Path:
    return Path(str(resources.files("hemolens"))) / "training" / "presets"
