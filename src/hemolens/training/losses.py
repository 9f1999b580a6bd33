"""The loss, part by part; what is unknown teaches nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hemolens.training.config import LossConfig

UNKNOWN_SUBTYPE = 6
"""Label of a blood pixel whose subtype is not known."""
TOP_PIXELS = 40
"""About half a square centimeter: the smallest bleed that a slice label is expected to pin down."""


def total_loss(mask: Tensor, slices: Tensor, batch: dict[str, Tensor], config: LossConfig) -> dict[str, Tensor]:
    """Return every part of the loss and their weighted sum as ``"total"``.

    Parameters
    ----------
    mask
        Logits ``(n, 6, h, w)``: blood, then subtypes.
    slices
        Logits ``(n, 6)``.
    batch
        ``labels`` (n, h, w) integers: 0 no blood, 1-5 subtype, 6 blood of unknown subtype; ``mask_known`` (n,);
        ``inside`` (n, h, w): where blood may be (all ones where the skull is not closed; a slice label then says
        nothing about pixels, or it would latch onto a scalp hematoma); ``findings`` (n, 6): 1, 0 or NaN for unknown.
    """
    labels, known, inside = batch["labels"], batch["mask_known"].bool(), batch["inside"]
    blood = mask[:, 0]
    probability = blood.sigmoid()
    zero = blood.sum() * 0.0
    any_bleed = batch["findings"][:, 0]
    gated = inside.flatten(1).mean(dim=1) < 0.99
    top = (probability * inside).flatten(1).topk(TOP_PIXELS, dim=1).values.mean(dim=1)
    parts = {
        "mask_bce": zero,
        "mask_dice": zero,
        "subtype": zero,
        "weak_subtype": _weak_subtype_loss(mask, batch, zero),
        "clean_top": _mean(-torch.log1p(-top.clamp(max=0.999)), any_bleed == 0, zero),
        "weak_top": _mean(-torch.log(top.clamp(min=1e-3)), (any_bleed == 1) & ~known & gated, zero),
        "outside": (probability * (1 - inside)).mean() * 10,
        "slice_bce": _slice_loss(slices, batch["findings"]),
    }
    if known.any():
        target = (labels[known] > 0).float()
        parts["mask_bce"] = F.binary_cross_entropy_with_logits(blood[known], target)
        parts["mask_dice"] = _dice_loss(probability[known], target)
        parts["subtype"] = _subtype_loss(mask[known, 1:], labels[known], zero)
    weights = {name: getattr(config, name) for name in parts}
    parts["total"] = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return parts


def _dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Soft Dice over those samples of the batch that hold blood; one minus it."""
    holds = target.flatten(1).any(dim=1)
    if not holds.any():
        return probability.sum() * 0.0
    p, t = probability[holds].flatten(1), target[holds].flatten(1)
    return (1 - (2 * (p * t).sum(dim=1) + 1) / (p.sum(dim=1) + t.sum(dim=1) + 1)).mean()


def _subtype_loss(logits: Tensor, labels: Tensor, zero: Tensor) -> Tensor:
    """Cross-entropy averaged per subtype, then over those present: large intraparenchymal bleeds must not rule."""
    told = (labels >= 1) & (labels <= logits.shape[1])
    if not told.any():
        return zero
    losses = F.cross_entropy(logits.permute(0, 2, 3, 1)[told], labels[told].long() - 1, reduction="none")
    kinds = labels[told].long() - 1
    sums = torch.zeros(logits.shape[1], device=logits.device).index_add(0, kinds, losses)
    counts = torch.bincount(kinds, minlength=logits.shape[1])
    return (sums[counts > 0] / counts[counts > 0]).mean()


def _weak_subtype_loss(mask: Tensor, batch: dict[str, Tensor], zero: Tensor) -> Tensor:
    """Blood whose subtype is not drawn must have one that its slice's findings allow.

    ``-log`` of the probability of all allowed subtypes together, over the blood pixels of unknown subtype: those of a
    pseudo-mask, and those that the network itself finds on a slice that is known to bleed but has no mask.
    """
    if mask.shape[1] == 1:
        return zero
    labels, known, findings = batch["labels"], batch["mask_known"].bool(), batch["findings"]
    found = (mask[:, 0].detach() > 0) & (batch["inside"] > 0) & ~known[:, None, None]
    chosen = (labels == UNKNOWN_SUBTYPE) | (found & (findings[:, 0] == 1)[:, None, None])
    if not chosen.any():
        return zero
    allowed = findings[:, 1:] != 0
    allowed = (allowed | ~allowed.any(dim=1, keepdim=True))[:, :, None, None]
    share = mask[:, 1:].log_softmax(dim=1).masked_fill(~allowed, -torch.inf).logsumexp(dim=1)
    return -share[chosen].clamp(min=-10.0).mean()


def _slice_loss(logits: Tensor, findings: Tensor) -> Tensor:
    told = ~findings.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, findings.nan_to_num(0.0), reduction="none")
    return (losses * told).sum() / told.sum().clamp(min=1)


def _mean(values: Tensor, chosen: Tensor, zero: Tensor) -> Tensor:
    return values[chosen].mean() if chosen.any() else zero
