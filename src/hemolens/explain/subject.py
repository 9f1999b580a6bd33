"""What is explained: a network that tells findings, with the preprocessing that it was trained with."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hemolens.config import suggestion
from hemolens.errors import ConfigError, ModelError
from hemolens.inference.predictor import Predictor
from hemolens.inference.registry import DEFAULT_MODEL, RUN_CARD, Interface, Model, load_model
from hemolens.inference.runtime import Runtime, open_runtime
from hemolens.models.network import Network
from hemolens.models.rebuild import rebuild_network
from hemolens.models.sequence import SequenceNetwork
from hemolens.preprocessing.pipeline import PreprocessConfig
from hemolens.volume import Volume

RUN_CONFIG = "config.toml"
"""Stands in the folder of every training run."""
ENCODER_LAYER = "encoder.stages.6.0.layers.1"
"""Activated features at stride 32. Of seven layers tried on 30 pseudo-masks of PHE-SICH and CT-ICH's 13 drawn masks it
had the highest energy inside; Grad-CAM wants features after an activation, and the last block's output is before it."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A network that can be asked where it looked.

    Parameters
    ----------
    name
        Of the model, or of the run's folder.
    sha256
        Of the weights file.
    preprocess, interface
        What the network sees, and in which shape.
    findings
        Maps images to logits ``(n, 6)`` in `FINDING_NAMES` order: of slices, of volumes, or of scans.
    layer
        Where Grad-CAM looks unless told otherwise; empty where there are no gradients.
    judge
        Tells the calibrated probabilities of the findings of each slice of a volume, ``(slices, 6)``; None where the
        model is not calibrated, or its findings are not those of a slice.
    """

    name: str
    sha256: str
    preprocess: PreprocessConfig
    interface: Interface
    findings: nn.Module
    layer: str
    judge: Callable[[Volume], NDArray[np.floating]] | None = None


class FindingLogits(nn.Module):
    """A network that answers with its findings alone: one row of logits per sample."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits ``(n, 6)``; for scans those of the whole scan."""
        output = self.network(x)
        logits: Tensor = output.findings if output.scan is None else output.scan
        return logits


class FileLogits(nn.Module):
    """The same from a network file, without gradients but faster."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits ``(n, 6)``."""
        told = self.runtime.run(np.ascontiguousarray(x.detach().numpy(), dtype=np.float32))
        return torch.from_numpy(np.asarray(told["scan"] if "scan" in told else told["slice"]))


def open_subject(name: str | None = None, *, gradients: bool = True) -> Subject:
    """Load what is to be explained.

    Parameters
    ----------
    name
        A model of `hemolens.inference.registry.load_model`, the folder of a training run (finished or not), or None
        for the default model.
    gradients
        Whether gradients are needed (Grad-CAM) or only results (occlusion), which network files tell faster.

    Raises
    ------
    ModelError
        If there is no such model, it cannot be used, or it tells no findings.
    """
    run = Path(name) if name is not None else Path(DEFAULT_MODEL)
    if (run / RUN_CONFIG).is_file() and (gradients or not (run / RUN_CARD).is_file()):
        return _of_run(run)
    model = load_model(name)
    _check_findings(model.name, model.interface)
    return _of_model(model, gradients)


def layer_names(findings: nn.Module) -> tuple[str, ...]:
    """Return the layers that Grad-CAM may be told to look at."""
    network = getattr(findings, "network", None)
    return tuple(name for name, _ in network.named_modules() if name) if isinstance(network, nn.Module) else ()


def check_layer(subject: Subject, layer: str) -> str:
    """Return `layer`, or the subject's own where it is empty.

    Raises
    ------
    ConfigError
        If there is no such layer.
    """
    known = layer_names(subject.findings)
    if not known:
        raise ModelError(f"{subject.name}: no gradients can be had from this model. Use --method occlusion.")
    if layer and layer not in known:
        raise ConfigError(f"{subject.name} has no layer '{layer}'.{_nearest_layer(layer, known)}")
    return layer or subject.layer


def _nearest_layer(layer: str, known: tuple[str, ...]) -> str:
    hint = suggestion(layer, known)
    return hint if hint.startswith(" Did") else f" Its parts are: {', '.join(n for n in known if '.' not in n)}."


def _of_run(run: Path) -> Subject:
    from hemolens.training.checkpoint import BEST, CHECKPOINT, load_run

    config, network = load_run(run)
    _check_findings(str(run), network.interface)
    path = run / BEST if (run / BEST).is_file() else run / CHECKPOINT
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return of_network(network, config.preprocess, run.resolve().name, digest)


def _of_model(model: Model, gradients: bool) -> Subject:
    judge = Predictor(model).judge if model.calibrated and model.interface.sample == "slice" else None
    if not gradients:
        findings = FileLogits(open_runtime(model))
        return Subject(model.name, model.sha256, model.preprocess, model.interface, findings, "", judge)
    return replace(of_network(rebuild_network(model), model.preprocess, model.name, model.sha256), judge=judge)


def of_network(network: Network, preprocess: PreprocessConfig, name: str = "network", sha256: str = "") -> Subject:
    """Return a trained torch network as a subject; the network itself stays as it is.

    Raises
    ------
    ModelError
        If it tells no findings.
    """
    _check_findings(name, network.interface)
    network = copy.deepcopy(network)
    if isinstance(network, SequenceNetwork):  # a frozen encoder runs without gradients
        network.config = replace(network.config, frozen=False)
    findings = FindingLogits(network).requires_grad_(False).eval()
    return Subject(name, sha256, preprocess, network.interface, findings, _layer_of(network))


def _layer_of(network: Network) -> str:
    """Return the last layer with features over the image that the findings rest on, after its activation."""
    kind = network.config.kind
    if kind == "effunet2d" and network.config.head == "attended":  # the head sees the decoder's features, too
        return f"decoder.{len(network.get_submodule('decoder')) - 1}"  # type: ignore[arg-type]
    if kind in ("effunet2d", "sequence"):
        return ENCODER_LAYER
    if kind == "resnet2d":
        return "stages"
    if kind in ("unet2d", "unet3d"):
        return f"down.{len(network.get_submodule('down')) - 1}"  # type: ignore[arg-type]
    blocks = [
        name for name, part in network.get_submodule("blocks").named_children() if isinstance(part, nn.Sequential)
    ]
    return f"blocks.{blocks[-1]}"


def _check_findings(name: str, interface: Interface) -> None:
    if not interface.findings:
        raise ModelError(
            f"{name}: this network outlines blood and tells no findings, so its mask is its own explanation. "
            "Name a network with a findings head, such as effunet2d, cnn2d or cnn3d."
        )
