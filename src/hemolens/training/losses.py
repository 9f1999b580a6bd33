"""The loss, part by part; what is unknown teaches nothing.

Every part is a sum and a count, `Part`, or the three sums of an overlap, `Overlap`. `total_loss` divides by the counts
of all processes together, so that several processes that share a batch learn what one would learn from all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hemolens.models.output import NetOutput
from hemolens.sources.datasets.cases import EDEMA, UNKNOWN, UNKNOWN_SUBTYPE

TOP_PIXELS = 40
"""About half a square centimeter: the smallest bleed that a slice label is expected to pin down."""
MASK_CHANNELS_WITHOUT_EDEMA = 6
"""Blood and its subtypes; a channel beyond them is edema."""
SMOOTH = 0.5
"""Added above and below in an overlap, in pixels."""

Reduce = Callable[[Tensor], Tensor]
"""Adds a tensor up over all processes."""


@dataclass(frozen=True)
class LossConfig:
    """Weights of the parts of the loss; a part of weight 0 is not computed.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    mask_bce: float = 1.0
    """Binary cross-entropy of blood, over all pixels whose truth is known."""
    mask_dice: float = 1.0
    """One minus Dice (Milletari et al. 2016)."""
    mask_focal: float = 0.0
    """Focal loss (Lin et al. 2017), with `focal_gamma` and `focal_alpha`."""
    mask_tversky: float = 0.0
    """One minus the Tversky index (Salehi et al. 2017), with `tversky_alpha` and `tversky_beta`."""
    subtype: float = 0.0
    """Cross-entropy of the subtype where it is drawn, each subtype alike."""
    weak_subtype: float = 0.0
    """Blood of unknown subtype must have one that its slice's findings allow."""
    edema_bce: float = 0.0
    """Binary cross-entropy of edema, where it is known: on samples that show some, or that hold no blood. Most data
    sets with drawn blood say nothing of edema."""
    edema_dice: float = 0.0
    """One minus Dice of edema on the samples that show some."""
    clean_top: float = 0.0
    """The brightest pixels of a sample without hemorrhage are pushed down."""
    weak_top: float = 0.0
    """The brightest pixels of a sample with hemorrhage and an unknown mask are pushed up."""
    outside: float = 0.0
    """Blood outside the skull is pushed down."""
    findings: float = 1.0
    """Binary cross-entropy of the findings of slices (or of the volume, where that is the sample)."""
    scan: float = 1.0
    """Binary cross-entropy of the findings of whole scans, for networks that tell both."""
    overlap: Literal["sample", "batch"] = "sample"
    """Dice and Tversky of each sample that holds blood, averaged; or of all pixels of the batch together, so that
    samples without blood count too."""
    focal_gamma: float = 2.0
    focal_alpha: float = 0.25
    """Weight of blood; that of the rest is one minus it."""
    tversky_alpha: float = 0.3
    """Weight of pixels found and not true."""
    tversky_beta: float = 0.7
    """Weight of pixels true and not found."""

    def __post_init__(self) -> None:
        weights = [getattr(self, name) for name in PARTS]
        if min(weights) < 0 or not any(weights):
            raise ValueError("the weights of the parts must be at least 0 and not all 0")
        if self.focal_gamma < 0 or not 0 < self.focal_alpha < 1:
            raise ValueError("focal_gamma must be at least 0 and focal_alpha between 0 and 1")
        if min(self.tversky_alpha, self.tversky_beta) < 0:
            raise ValueError("tversky_alpha and tversky_beta must be at least 0")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each part that counts."""
        return {name: getattr(self, name) for name in PARTS if getattr(self, name) > 0}


PARTS: tuple[str, ...] = (
    "mask_bce",
    "mask_dice",
    "mask_focal",
    "mask_tversky",
    "subtype",
    "weak_subtype",
    "edema_bce",
    "edema_dice",
    "clean_top",
    "weak_top",
    "outside",
    "findings",
    "scan",
)


class Part(NamedTuple):
    """A mean in the making: the average of ``total / number`` over the entries whose number is not 0."""

    total: Tensor
    """Shape ``(k,)``, with gradient."""
    number: Tensor
    """Shape ``(k,)``."""


class Overlap(NamedTuple):
    """A Tversky index of all pixels together in the making; Dice where `alpha` and `beta` are one half."""

    sums: Tensor
    """Sums of probability × truth, probability and truth, with gradient."""
    alpha: float
    beta: float


Parts = Mapping[str, "Part | Overlap"]


class Loss(NamedTuple):
    """The loss of a batch."""

    total: Tensor
    """What to differentiate: gradients averaged over the processes are those of the whole batch."""
    values: dict[str, float]
    """Each part that had something to say, and the weighted sum as ``"loss"``; of all processes together."""


def total_loss(parts: Parts, config: LossConfig, reduce: Reduce | None = None, world: int = 1) -> Loss:
    """Weigh the parts of a batch, or of this process's share of it, and add them up.

    Parameters
    ----------
    parts
        From `loss_parts`.
    config
        The weights.
    reduce, world
        How to add up over processes, and how many there are.

    Raises
    ------
    ValueError
        If there are no parts.
    """
    if not parts:
        raise ValueError("no part of the loss has a weight and something to say of this network")
    sizes = [len(_sums(part)) for part in parts.values()]
    own = torch.cat([_sums(part) for part in parts.values()]).detach()
    everyone = (reduce(own) if reduce else own).double().cpu()
    shares, values = [], {}
    for (name, part), sums in zip(parts.items(), torch.split(everyone, sizes), strict=True):
        slope, value = _slope(part, sums)
        on = part.sums if isinstance(part, Overlap) else part.total
        shares.append(config.weights[name] * world * (on.float() * slope.to(on.device, torch.float32)).sum())
        if value is not None:
            values[name] = value
    return Loss(torch.stack(shares).sum(), {"loss": sum(config.weights[n] * v for n, v in values.items()), **values})


def _sums(part: Part | Overlap) -> Tensor:
    return part.sums.float() if isinstance(part, Overlap) else torch.cat([part.total.float(), part.number.float()])


def _slope(part: Part | Overlap, sums: Tensor) -> tuple[Tensor, float | None]:
    """Return how the part's value changes with each of its own sums, given everyone's, and the value, if any."""
    if isinstance(part, Overlap):
        leaf = sums.clone().requires_grad_(True)
        with torch.enable_grad():
            value = overlap_loss(leaf[0], leaf[1], leaf[2], part.alpha, part.beta)
        (slope,) = torch.autograd.grad(value, leaf)
        return slope, float(value.detach())
    totals, counts = sums.chunk(2)
    present = counts > 0
    if not present.any():
        return torch.zeros_like(totals), None
    slope = present / counts.clamp(min=1e-12) / present.sum()
    return slope, float((totals * slope).sum())


def add_parts(one: Parts, other: Parts) -> Parts:
    """Add the sums of two batches, as for the loss over a whole validation set."""
    added: dict[str, Part | Overlap] = {}
    for name, part in one.items():
        more = other[name]
        if isinstance(part, Overlap) and isinstance(more, Overlap):
            added[name] = part._replace(sums=part.sums + more.sums)
        elif isinstance(part, Part) and isinstance(more, Part):
            added[name] = Part(part.total + more.total, part.number + more.number)
    return added


def loss_parts(output: NetOutput, batch: Mapping[str, Tensor], config: LossConfig) -> Parts:
    """Return the sums and counts of every part that has a weight and that the network can answer.

    Parameters
    ----------
    output
        Logits of the network.
    batch
        ``labels`` (n, [d,] h, w): 0 no blood, 1-5 subtype, 6 blood of unknown subtype, 7 edema, 255 unknown;
        ``inside``, of the same shape: where blood may be (all ones where the skull is not closed; a slice label then
        says nothing about pixels, or it would latch onto a scalp hematoma); ``findings`` (n, 6) or (n, s, 6) and
        ``scan_findings`` (n, 6): 1, 0 or NaN for unknown.
    """
    weights = config.weights
    parts: dict[str, Part | Overlap] = {}
    if output.mask is not None:
        parts.update(_mask_parts(output.mask, batch, config))
    if output.findings is not None and "findings" in weights:
        parts["findings"] = findings_bce(output.findings, batch["findings"])
    if output.scan is not None and "scan" in weights:
        parts["scan"] = findings_bce(output.scan, batch["scan_findings"])
    return parts


def _mask_parts(mask: Tensor, batch: Mapping[str, Tensor], config: LossConfig) -> dict[str, Part | Overlap]:
    """Return the parts that teach pixels; `mask` has shape ``(n, m, [d,] h, w)``."""
    labels, inside = batch["labels"].flatten(1), batch["inside"].flatten(1).float()
    logits = mask.float().flatten(2)
    blood, known = logits[:, 0], labels != UNKNOWN
    truth = ((labels > 0) & (labels <= UNKNOWN_SUBTYPE)).float()  # edema is no blood
    probability = blood.sigmoid()
    any_blood = batch["scan_findings" if batch["findings"].ndim == 3 else "findings"][:, 0]
    top = (probability * inside).topk(min(TOP_PIXELS, inside.shape[1]), dim=1).values.mean(dim=1)
    untold = (any_blood == 1) & ~known.any(dim=1) & (inside.mean(dim=1) < 0.99)
    a, b = config.tversky_alpha, config.tversky_beta
    makers: dict[str, Callable[[], Part | Overlap]] = {
        "mask_bce": lambda: _mean(F.binary_cross_entropy_with_logits(blood, truth, reduction="none"), known),
        "mask_focal": lambda: _mean(focal_loss(blood, truth, config.focal_gamma, config.focal_alpha), known),
        "mask_dice": lambda: _overlap(probability, truth, known, config.overlap, 0.5, 0.5),
        "mask_tversky": lambda: _overlap(probability, truth, known, config.overlap, a, b),
        "outside": lambda: _mean(10 * probability * (1 - inside), torch.ones_like(known)),
        "clean_top": lambda: _mean(-torch.log1p(-top.clamp(max=0.999)), any_blood == 0),
        "weak_top": lambda: _mean(-torch.log(top.clamp(min=1e-3)), untold),
    }
    if mask.shape[1] > MASK_CHANNELS_WITHOUT_EDEMA:
        swollen, told = _edema(labels, truth)
        edema = logits[:, MASK_CHANNELS_WITHOUT_EDEMA]
        makers["edema_bce"] = lambda: _mean(F.binary_cross_entropy_with_logits(edema, swollen, reduction="none"), told)
        makers["edema_dice"] = lambda: _overlap(edema.sigmoid(), swollen, told, config.overlap, 0.5, 0.5)
    if mask.shape[1] > 1:
        makers["subtype"] = lambda: _subtype(logits[:, 1:MASK_CHANNELS_WITHOUT_EDEMA], labels)
        makers["weak_subtype"] = lambda: _weak_subtype(logits, labels, inside, batch["findings"])
    return {name: make() for name, make in makers.items() if name in config.weights}


def _edema(labels: Tensor, blood: Tensor) -> tuple[Tensor, Tensor]:
    """Return where edema is, and where that is known."""
    swollen = labels == EDEMA
    told = swollen.any(dim=1, keepdim=True) | ~blood.any(dim=1, keepdim=True)
    return swollen.float(), told & (labels != UNKNOWN)


def focal_loss(logits: Tensor, truth: Tensor, gamma: float, alpha: float) -> Tensor:
    """Return the focal loss of each pixel, ``-alpha_t (1 - p_t)^gamma log p_t`` (Lin et al. 2017, equation 5)."""
    right = torch.where(truth > 0.5, logits, -logits)
    weight = torch.where(truth > 0.5, alpha, 1 - alpha)
    return -weight * (1 - right.sigmoid()) ** gamma * F.logsigmoid(right)


def overlap_loss(both: Tensor, found: Tensor, true: Tensor, alpha: float, beta: float) -> Tensor:
    """Return one minus the Tversky index of soft pixel counts; with `alpha` and `beta` one half it is Dice.

    Parameters
    ----------
    both, found, true
        Sums of probability × truth, probability and truth.
    alpha, beta
        Weights of false and of missed pixels.
    """
    return 1 - (both + SMOOTH) / (both + alpha * (found - both) + beta * (true - both) + SMOOTH)


def findings_bce(logits: Tensor, findings: Tensor) -> Part:
    """Binary cross-entropy where the finding is known, i.e. not NaN; shapes are equal."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), findings.float().nan_to_num(0.0), reduction="none")
    return _mean(losses, ~findings.isnan())


def _overlap(p: Tensor, truth: Tensor, known: Tensor, over: str, alpha: float, beta: float) -> Part | Overlap:
    seen = p * known
    both, found, true = (seen * truth).sum(dim=1), seen.sum(dim=1), (truth * known).sum(dim=1)
    if over == "batch":
        return Overlap(torch.stack([both.sum(), found.sum(), true.sum()]), alpha, beta)
    return _mean(overlap_loss(both, found, true, alpha, beta), true > 0)


def _subtype(logits: Tensor, labels: Tensor) -> Part:
    """Cross-entropy averaged per subtype, then over those present: large intraparenchymal bleeds must not rule.

    Shapes ``(n, 5, pixels)`` and ``(n, pixels)``.
    """
    told = (labels >= 1) & (labels <= logits.shape[1])
    kinds = labels[told].long() - 1
    losses = F.cross_entropy(logits.permute(0, 2, 1)[told], kinds, reduction="none")
    total = (F.one_hot(kinds, logits.shape[1]).float() * losses[:, None]).sum(dim=0)
    return Part(total, torch.bincount(kinds, minlength=logits.shape[1]).float())


def _weak_subtype(logits: Tensor, labels: Tensor, inside: Tensor, findings: Tensor) -> Part:
    """Blood whose subtype is not drawn must have one that its sample's findings allow.

    ``-log`` of the probability of all allowed subtypes together, over the blood pixels of unknown subtype: those of a
    mask, and those that the network itself finds on a sample that is known to bleed but has no mask.
    """
    found = (logits[:, 0].detach() > 0) & (inside > 0) & (labels == UNKNOWN)
    chosen = (labels == UNKNOWN_SUBTYPE) | (found & (findings[:, 0] == 1)[:, None])
    allowed = findings[:, 1:] != 0
    allowed = (allowed | ~allowed.any(dim=1, keepdim=True))[:, :, None]
    # Not -inf: pixels that are not chosen would turn the gradient of the others into NaN.
    share = logits[:, 1:MASK_CHANNELS_WITHOUT_EDEMA].log_softmax(dim=1).masked_fill(~allowed, -1e9).logsumexp(dim=1)
    return _mean(-share.clamp(min=-10.0), chosen)


def _mean(values: Tensor, chosen: Tensor) -> Part:
    return Part(torch.where(chosen, values, 0.0).sum()[None], chosen.sum().float()[None])
