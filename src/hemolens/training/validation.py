"""How good the weights are while they are trained: the loss, Dice, accuracy and ROC-AUC, quickly.

These guide a run; what is reported comes from `hemolens.evaluation`, on the source grid and with intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hemolens.evaluation.metrics import auc_score, average_precision_score
from hemolens.models.network import Network
from hemolens.models.output import NetOutput
from hemolens.sources.datasets.cases import UNKNOWN, UNKNOWN_SUBTYPE
from hemolens.training.config import TrainConfig
from hemolens.training.data import Batch, DataConfig, ordered_batches
from hemolens.training.losses import Parts, add_parts, loss_parts, total_loss
from hemolens.training.store import Store

SUMS = 7
"""Both, found, true, right and known pixels; samples told right, and told."""


@dataclass
class Tally:
    """Counts at a threshold of one half."""

    sums: Tensor = field(default_factory=lambda: torch.zeros(SUMS, dtype=torch.float64))

    def add(self, output: NetOutput, batch: Batch, usable: Tensor | None = None) -> None:
        """Count a batch.

        Parameters
        ----------
        output, batch
            Logits and truth.
        usable
            Samples whose masks count, shape ``(n,)``; all if None.
        """
        sums = self.sums
        if output.mask is not None:
            labels, found = batch["labels"].flatten(1), output.mask[:, 0].detach().flatten(1) > 0
            known = labels != UNKNOWN
            if usable is not None:
                known &= usable[:, None].to(known.device)
            true = (labels > 0) & (labels <= UNKNOWN_SUBTYPE) & known
            found &= known
            counts = [(found & true), found, true, (found == true) & known, known]
            sums[:5] += torch.stack([c.sum() for c in counts]).double().cpu()
        if output.findings is not None:
            truth = batch["findings"][..., 0]
            told = ~truth.isnan()
            right = ((output.findings[..., 0].detach() > 0) == (truth > 0.5)) & told
            sums[5:] += torch.stack([right.sum(), told.sum()]).double().cpu()

    def scores(self) -> dict[str, float]:
        """Return what is defined of Dice, pixel accuracy and detection accuracy."""
        both, found, true, right, known, hits, told = self.sums.tolist()
        values = {}
        if true:  # else there is nothing to find
            values["dice"] = 2 * both / (found + true)
        if known:
            values["accuracy"] = right / known
        if told:
            values["detection_accuracy"] = hits / told
        return values


@torch.no_grad()
def validate(network: Network, store: Store, config: TrainConfig, data: DataConfig, fabric: Any) -> dict[str, float]:
    """Return the scores of the whole validation side; what is undefined is absent.

    Dice and pixel accuracy count drawn masks and slices without hemorrhage; a pseudo-mask is no yardstick, though the
    loss, which the network is trained to lower, holds it.
    """
    network.eval()
    tally, parts = Tally(), None
    scores: list[Tensor] = []
    truths: list[Tensor] = []
    pseudo = _pseudo_names(store, network.sample)
    for batch in ordered_batches(store, data, sample=network.sample, channels=network.channels, batch=config.batch):
        moved = to_device(batch, fabric.device)
        with fabric.autocast():
            output = network(moved["images"])
        output = NetOutput(*(None if part is None else part.float() for part in output))
        found = loss_parts(output, moved, config.loss)
        parts = found if parts is None else add_parts(parts, found)
        usable = torch.tensor([name not in pseudo for name in batch["names"]])
        tally.add(output, moved, usable)
        if output.findings is not None:
            scores.append(output.findings[..., 0].flatten().cpu())
            truths.append(moved["findings"][..., 0].flatten().cpu())
    values = _loss_values(parts, config)
    values.update(tally.scores())
    if scores:
        values.update(_ranking(torch.cat(truths).numpy(), torch.cat(scores).numpy()))
    return values


def _loss_values(parts: Parts | None, config: TrainConfig) -> dict[str, float]:
    return dict(total_loss(parts, config.loss).values) if parts else {}


def _ranking(truth: np.ndarray[Any, Any], score: np.ndarray[Any, Any]) -> dict[str, float]:
    told = ~np.isnan(truth)
    truth, score = truth[told], score[told]
    values = {"auc": auc_score(truth, score), "average_precision": average_precision_score(truth, score)}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _pseudo_names(store: Store, sample: str) -> set[str]:
    """Names of samples that show a derived mask: the slice's own, or, for windows of slices, any of the case."""
    derived = {item.case for item in store.items if item.mask_state == "pseudo"}
    return {
        store.cases[item.case].slice_id(item.index)
        for item in store.items
        if (item.mask_state == "pseudo" if sample == "slice" else item.case in derived)
    }


def to_device(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """Move what is a tensor."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
