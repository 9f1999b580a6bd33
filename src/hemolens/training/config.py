"""Every setting of a training run, frozen and saved with the weights that it made."""

from __future__ import annotations

from dataclasses import dataclass, field

from hemolens.models.effunet2d import EffUNetConfig
from hemolens.preprocessing.pipeline import PreprocessConfig
from hemolens.training.synthesis import SynthesisConfig


@dataclass(frozen=True)
class MixConfig:
    """Shares of each kind of sample in a batch; they are normalized."""

    synthetic: float = 0.36
    """Bleeds painted into bleed-free CT-ICH slices."""
    synthetic_phe: float = 0.08
    """The same on PHE-SICH slices without a marked lesion."""
    clean: float = 0.26
    """CT-ICH slices whose row says: no hemorrhage."""
    weak: float = 0.14
    """CT-ICH slices with hemorrhage and an unknown mask: only the slice label teaches."""
    pseudo: float = 0.16
    """PHE-SICH slices with a pseudo-mask."""

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or sum(self.shares) <= 0:
            raise ValueError("shares must be at least 0 and not all 0")

    @property
    def shares(self) -> tuple[float, ...]:
        """In the order of `hemolens.training.data.KINDS`."""
        return (self.synthetic, self.synthetic_phe, self.clean, self.weak, self.pseudo)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the parts of the loss (see `hemolens.training.losses`)."""

    mask_bce: float = 8.0
    mask_dice: float = 0.7
    subtype: float = 0.6
    weak_subtype: float = 0.3
    clean_top: float = 0.1
    weak_top: float = 0.2
    outside: float = 0.5
    slice_bce: float = 0.7


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up and cosine decay."""

    rate: float = 1e-3
    encoder_factor: float = 0.4
    weight_decay: float = 0.02
    clip_norm: float = 3.0
    warmup_steps: int = 40
    ema_decay: float = 0.99


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    steps: int = 1600
    batch: int = 16
    seed: int = 0
    repeat_center: float = 0.4
    """Chance that a sample shows its middle slice three times, as a lone slice does."""
    network: EffUNetConfig = field(default_factory=EffUNetConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    workers: int = 1
    log_every: int = 20
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or self.workers < 0:
            raise ValueError("steps and batch must be at least 1, workers at least 0")
        if not 0 <= self.repeat_center <= 1:
            raise ValueError("repeat_center must be from 0 to 1")
