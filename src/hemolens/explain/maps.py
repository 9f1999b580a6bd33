"""Maps of evidence on the network's own grid, by MONAI's Grad-CAM, Grad-CAM++ and occlusion sensitivity."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from hemolens.errors import ModelError
from hemolens.preprocessing.head import SOFT_TISSUE_GRAY

BRAIN_GRAY = 117.0
"""35 HU: what is hidden is painted as plain brain, not black, which no head shows."""
OVERLAP = 0.5
"""Of neighboring patches."""
BATCH = 8

Float = NDArray[np.float32]


class Mapper(Protocol):
    """Anything that says where the evidence for a finding lies."""

    def __call__(self, images: Tensor, finding: int) -> tuple[Float, float]:
        """Map one sample ``(1, …)`` to its evidence, not negative, ``(slices, h, w)``, and the finding's logit."""
        ...


class GradientMapper:
    """Grad-CAM (Selvaraju et al. 2017) or Grad-CAM++ (Chattopadhyay et al. 2018).

    Parameters
    ----------
    findings
        A `FindingLogits`.
    layer
        Layer of its network whose features are weighted.
    plus_plus
        Grad-CAM++.
    """

    def __init__(self, findings: nn.Module, layer: str, *, plus_plus: bool) -> None:
        from monai.visualize.class_activation_maps import GradCAM, GradCAMpp

        self.layer = layer
        self.strides: tuple[int, ...] = getattr(findings.network, "stride", (1, 1, 1))
        self.plus_plus = plus_plus
        findings = copy.deepcopy(findings)  # hooks are for good
        # Gradients are wanted from the layer on only: what comes before needs no graph, and no memory for one.
        findings.get_submodule(f"network.{layer}").register_forward_pre_hook(_start_gradients)
        self._cam: Any = (GradCAMpp if plus_plus else GradCAM)(findings, f"network.{layer}")

    def __call__(self, images: Tensor, finding: int) -> tuple[Float, float]:
        """See `Mapper`; in units of logits times features, not scaled."""
        try:
            with torch.enable_grad():
                small = self._cam.compute_map(images, class_idx=finding).detach()
        except (IndexError, KeyError, ValueError, RuntimeError) as error:
            raise self._useless() from error
        if small.ndim < 4:
            raise self._useless()
        score = self._cam.nn_module.score.detach()
        if self.plus_plus:  # it weights by exp(logit), which would drown all other slices
            small = small / score.exp()
        return self._enlarged(small, images), float(score)

    def _useless(self) -> ModelError:
        return ModelError(
            f"Layer '{self.layer}' holds no features over the image that the findings rest on. Choose another --layer."
        )

    def _enlarged(self, small: Tensor, images: Tensor) -> Float:
        """Return a map on the grid of the images; networks pad odd sizes at their ends, and so the map is cut there."""
        sizes = tuple(images.shape[2:] if small.ndim == images.ndim else images.shape[-2:])
        padded = tuple(-(-size // step) * step for size, step in zip(sizes, self.strides[-len(sizes) :], strict=True))
        mode = "trilinear" if len(sizes) == 3 else "bilinear"
        full = _cut(F.interpolate(small, padded, mode=mode, align_corners=False), sizes)
        return np.ascontiguousarray(full.squeeze(1).flatten(0, full.ndim - 4).numpy(), dtype=np.float32)


class OcclusionMapper:
    """Hide one patch after another and see how much the logit falls (Zeiler and Fergus 2014).

    Parameters
    ----------
    findings
        Any module that maps images to logits.
    patch
        Size of a patch: slices (for volumes), rows, columns.
    """

    def __init__(self, findings: nn.Module, patch: tuple[int, ...]) -> None:
        self.findings = findings
        self.patch = patch

    @torch.no_grad()
    def __call__(self, images: Tensor, finding: int) -> tuple[Float, float]:
        """See `Mapper`; in logits that the finding loses."""
        from monai.visualize.occlusion_sensitivity import OcclusionSensitivity

        logit = float(self.findings(images)[0, finding])
        space = images.shape[2:]
        evidence = np.zeros(space, dtype=np.float32)
        box = _tissue_box(images)
        if box is not None:
            patch = tuple(min(p, high - low) for p, (low, high) in zip(self.patch, box, strict=True))
            measure: Any = OcclusionSensitivity(
                self.findings, patch, n_batch=BATCH, verbose=False, mode=BRAIN_GRAY, overlap=OVERLAP, activate=False
            )
            inside = tuple(slice(low, high) for low, high in box)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Using a non-tuple sequence")  # MONAI's own indexing
                hidden, _ = measure(images, b_box=[edge for pair in box for edge in pair])
            evidence[inside] = np.maximum(logit - np.asarray(hidden[0, finding], dtype=np.float32), 0)
        return evidence.reshape(-1, *space[-2:]), logit


def _cut(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    for dim, size in enumerate(sizes, start=2):
        x = x.narrow(dim, 0, size)
    return x


def _tissue_box(images: Tensor) -> list[tuple[int, int]] | None:
    """Return the range along each axis that holds tissue; hiding air says nothing."""
    tissue = (images[0] > SOFT_TISSUE_GRAY).any(dim=0).numpy()
    if not tissue.any():
        return None
    box = []
    for axis in range(tissue.ndim):
        there = np.flatnonzero(tissue.any(axis=tuple(a for a in range(tissue.ndim) if a != axis)))
        box.append((int(there[0]), int(there[-1]) + 1))
    return box


def _start_gradients(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    # A copy, since a layer may work in place, which a leaf does not bear.
    return tuple(x.detach().requires_grad_(True).clone() if isinstance(x, Tensor) else x for x in inputs)


class Mirrored:
    """Gradient maps averaged over an image and its mirror image, as predictions are."""

    def __init__(self, mapper: Mapper) -> None:
        self.mapper = mapper

    def __call__(self, images: Tensor, finding: int) -> tuple[Float, float]:
        """See `Mapper`."""
        evidence, logit = self.mapper(images, finding)
        turned, other = self.mapper(images.flip(-1), finding)
        return np.asarray((evidence + turned[..., ::-1]) / 2, dtype=np.float32), (logit + other) / 2


class MirroredLogits(nn.Module):
    """Logits averaged over an image and its mirror image, as predictions are; for occlusion it doubles the work."""

    def __init__(self, findings: nn.Module) -> None:
        super().__init__()
        self.findings = findings

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits ``(n, 6)``."""
        logits: Tensor = (self.findings(x) + self.findings(x.flip(-1))) / 2
        return logits
