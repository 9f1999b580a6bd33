"""The one call: from a scan and a network to maps of evidence on the grid of the scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from hemolens.config import suggestion
from hemolens.errors import ConfigError, InputError, ModelError
from hemolens.explain.energy import Energy, Mask, energy_inside
from hemolens.explain.maps import GradientMapper, Mapper, Mirrored, MirroredLogits, OcclusionMapper
from hemolens.explain.subject import Subject, check_layer
from hemolens.explain.truth import TrueMask
from hemolens.inference.calibrate import sigmoid
from hemolens.inference.predictor import LONGEST_SCAN
from hemolens.inference.windows import pieces, stacks, windows
from hemolens.labels import FINDING_NAMES
from hemolens.preprocessing.head import head_masks
from hemolens.preprocessing.pipeline import Prepared, prepare
from hemolens.volume import Volume

Method = Literal["gradcam", "gradcam++", "occlusion"]
METHODS: tuple[Method, ...] = get_args(Method)
PATCH_SHARE = 1 / 7
"""Side of a patch of occlusion, as a share of the crop: about 37 mm."""
PATCH_SHARE_3D = 1 / 5
"""The same for volumes, which take many more patches."""
PATCH_SLICES = 4
"""Thickness of a patch in volumes."""

Float = NDArray[np.float32]


@dataclass(frozen=True)
class ExplainConfig:
    """What is asked.

    Raises
    ------
    ConfigError
        For an unknown method or finding, with the nearest name.
    """

    method: Method = "gradcam"
    finding: str = "any"
    """One of `hemolens.labels.FINDING_NAMES`."""
    layer: str = ""
    """Where Grad-CAM looks; empty for the last layer before the findings that still has features over the image."""
    patch: int = 0
    """Side of the patches of occlusion in pixels of the network's grid; 0 for a seventh of it (volumes: a fifth)."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"There is no method '{self.method}'.{suggestion(self.method, METHODS)}")
        if self.finding not in FINDING_NAMES:
            raise ConfigError(f"There is no finding '{self.finding}'.{suggestion(self.finding, FINDING_NAMES)}")
        if self.patch < 0 or self.patch == 1:
            raise ConfigError("patch must be at least 2 pixels, or 0.")
        if self.method == "occlusion" and self.layer:
            raise ConfigError("A layer is for Grad-CAM; occlusion hides parts of the image. Leave one of them out.")
        if self.method != "occlusion" and self.patch:
            raise ConfigError("A patch is for occlusion; Grad-CAM has none. Leave it out, or use --method occlusion.")


@dataclass(frozen=True)
class Sample:
    """What the network said of one sample, and how strong its map is."""

    slices: tuple[int, ...]
    """Indices into the volume that the sample is about: one slice, a window of a volume, or the whole scan."""
    logit: float
    """Of the finding, averaged over the image and its mirror image where predictions are."""
    peak: float
    """Highest value of the map before it is scaled: lost logits for occlusion, else logits times features."""
    reported: float | None = None
    """Probability of the finding that an analysis reports of the slice; None without a `Subject.judge`."""

    @property
    def probability(self) -> float:
        """What is reported where that is known, else the network's own, which is not calibrated."""
        return float(sigmoid(self.logit)) if self.reported is None else self.reported


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where the evidence for a finding lies in a scan.

    Parameters
    ----------
    volume
        The scan.
    values
        Shape of the volume, 0 to 1: each sample's map divided by its peak and multiplied by its probability
        (`Sample.probability`), so that a slice without a finding stays dark. Overlapping windows are averaged. 0 where
        nothing was asked.
    head
        Where the head is, same shape.
    samples
        In the order of the volume.
    slices
        Indices of the slices that were asked for.
    config
        What was asked, with its blanks filled.
    subject
        Who was asked.
    """

    volume: Volume
    values: Float
    head: Mask
    samples: tuple[Sample, ...]
    slices: tuple[int, ...]
    config: ExplainConfig
    subject: Subject

    def energy(self, truth: TrueMask, index: int | None = None) -> Energy:
        """Score one slice, or all explained slices together, against the true mask.

        Parameters
        ----------
        truth
            Slices whose mask is not known are left out.
        index
            A slice; None for all.
        """
        if index is not None:
            if not truth.known[index]:
                return Energy(float("nan"), float("nan"), None)
            return energy_inside(self.values[index], truth.lesion(self.config.finding, index), self.head[index])
        shown = [k for k in self.slices if truth.known[k]]
        weights = self.volume.require_stack().voxel_volumes_ml[shown] if self.volume.has_volumes else None
        lesion = truth.lesion(self.config.finding)[shown]
        return energy_inside(self.values[shown], lesion, self.head[shown], weights)


def explain(
    volume: Volume,
    subject: Subject,
    config: ExplainConfig = ExplainConfig(),
    slices: Sequence[int] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Explanation:
    """Ask a network where it sees a finding.

    Parameters
    ----------
    volume
        The scan.
    subject
        From `hemolens.explain.subject.open_subject`.
    slices
        Indices into the volume; None for all. Networks that read volumes or scans are asked for all of it and only
        what is shown is chosen.
    progress
        Called with the share that is done.

    Raises
    ------
    InputError
        For a slice that is not there.
    ConfigError
        For a layer that is not there.
    ModelError
        If the method does not fit the network.
    """
    chosen = check_slices(volume, slices)
    config, mapper = _mapper(subject, config)
    prepared = prepare(volume, subject.preprocess)
    places = _places(volume, prepared, chosen, subject)
    finding = FINDING_NAMES.index(config.finding)
    reported = subject.judge(volume)[:, finding] if subject.judge else None
    total, count = np.zeros(prepared.crops.shape, dtype=np.float32), np.zeros(len(volume), dtype=np.float32)
    samples = []
    origin = prepared.restore_slices(np.arange(len(volume), dtype=np.float32)).astype(int)
    order = np.argsort(origin)  # the source's slice at each place of the network's order
    for number, place in enumerate(places):
        evidence, logit = mapper(_images(prepared, place, subject), finding)
        peak, about = float(evidence.max()), tuple(sorted(int(order[k]) for k in place))
        sample = Sample(about, logit, peak, None if reported is None else float(reported[about[0]]))
        total[place] += evidence[: len(place)] * (sample.probability / peak if peak > 0 else 0.0)
        count[place] += 1
        samples.append(sample)
        if progress:
            progress((number + 1) / len(places))
    values = prepared.restore(np.asarray(total / np.maximum(count, 1)[:, None, None], dtype=np.float32))
    head = prepared.restore(head_masks(prepared.crops, 1).astype(np.float32)) > 0.5
    hidden = np.setdiff1d(np.arange(len(volume)), chosen)
    values[hidden] = 0
    samples.sort(key=lambda s: s.slices)
    return Explanation(volume, np.clip(values, 0, 1), head, tuple(samples), chosen, config, subject)


def check_slices(volume: Volume, slices: Sequence[int] | None) -> tuple[int, ...]:
    """Return the slices asked for, sorted, each once; None stands for all.

    Raises
    ------
    InputError
        For a slice that is not there.
    """
    if slices is None:
        return tuple(range(len(volume)))
    outside = [k for k in slices if not 0 <= k < len(volume)]
    if outside or not slices:
        wrong = f"has no slice {outside[0]}" if outside else "none of its slices was asked for"
        raise InputError(
            volume.source.path_or_uid, wrong, f"Its {len(volume)} slices are numbered 0 to {len(volume) - 1}."
        )
    return tuple(sorted(set(slices)))


def _mapper(subject: Subject, config: ExplainConfig) -> tuple[ExplainConfig, Mapper]:
    mapper: Mapper
    if config.method == "occlusion":
        if subject.interface.sample == "scan":
            raise ModelError(
                f"{subject.name}: reads whole scans, which occlusion takes hours for. Use --method gradcam."
            )
        flat = subject.interface.sample == "slice"
        side = config.patch or round(subject.preprocess.size * (PATCH_SHARE if flat else PATCH_SHARE_3D))
        if side > subject.preprocess.size:
            raise ConfigError(f"patch must be at most {subject.preprocess.size} pixels for {subject.name}.")
        findings = MirroredLogits(subject.findings) if subject.preprocess.mirror else subject.findings
        mapper = OcclusionMapper(findings, (side, side) if flat else (PATCH_SLICES, side, side))
        return ExplainConfig(config.method, config.finding, "", side), mapper
    layer = check_layer(subject, config.layer)
    mapper = GradientMapper(subject.findings, layer, plus_plus=config.method == "gradcam++")
    return ExplainConfig(config.method, config.finding, layer), Mirrored(
        mapper
    ) if subject.preprocess.mirror else mapper


def _places(volume: Volume, prepared: Prepared, chosen: tuple[int, ...], subject: Subject) -> list[NDArray[np.intp]]:
    """Return which slices, in the network's order, make up each sample."""
    kind, n = subject.interface.sample, len(volume)
    if kind == "slice":
        origin = prepared.restore_slices(np.arange(n, dtype=np.float32)).astype(int)
        return [origin[k : k + 1] for k in chosen]
    found = []
    for stack in stacks(n, prepared.step):
        parts = windows(len(stack), subject.interface.depth) if kind == "volume" else pieces(len(stack), LONGEST_SCAN)
        found += [stack[part] for part in parts]
    return found


def _images(prepared: Prepared, place: NDArray[np.intp], subject: Subject) -> torch.Tensor:
    """Return one sample in the shape that the network takes."""
    seen = prepared.contexts[place]
    if subject.interface.channels == 1:
        seen = seen[:, 1:2]
    images = torch.from_numpy(seen.astype(np.float32))
    if subject.interface.sample == "volume":  # a short window is filled up with black slices, as in predictions
        missing = max(subject.interface.depth - len(place), 0)
        return torch.cat([images, images.new_zeros(missing, *images.shape[1:])]).transpose(0, 1)[None]
    return images[None] if subject.interface.sample == "scan" else images
