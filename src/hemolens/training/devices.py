"""Where a run computes: processor or GPU, one process or many, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hemolens.errors import ConfigError, DependencyError
from hemolens.training.config import TrainConfig
from hemolens.training.losses import Reduce


def open_fabric(config: TrainConfig) -> Any:
    """Return a launched `lightning_fabric.Fabric`: one process, or this one's place among those of torchrun.

    Raises
    ------
    ConfigError
        If a GPU was asked for and there is none, or the processes cannot share the batch.
    DependencyError
        If Lightning Fabric is not installed.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    except ImportError as error:
        raise DependencyError("lightning-fabric", "train") from error
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cuda" and not gpus:
        raise ConfigError("device is cuda, but torch finds no GPU here. Set device=cpu, or install torch with CUDA.")
    use_gpu = bool(gpus) and config.device != "cpu"
    if config.precision == "16" and not use_gpu:
        raise ConfigError("precision 16 needs a GPU, and torch finds none here. Set precision=bf16 or 32.")
    world = TorchElasticEnvironment().world_size() if TorchElasticEnvironment.detect() else 1
    if world % config.nodes:
        raise ConfigError(f"torchrun started {world} processes, which nodes={config.nodes} machines cannot share.")
    per_node = world // config.nodes
    if use_gpu and per_node > gpus:
        raise ConfigError(f"{per_node} processes were started on a machine with {gpus} GPUs. Start one for each.")
    if config.batch % world:
        raise ConfigError(f"batch={config.batch} cannot be shared by {world} processes: make it a multiple of {world}.")
    fabric = Fabric(
        accelerator="cuda" if use_gpu else "cpu",
        devices=per_node,
        num_nodes=config.nodes,
        strategy="ddp" if world > 1 else "auto",
        plugins=[_precision(config.precision, "cuda" if use_gpu else "cpu")],
    )
    fabric.launch()
    return fabric


def reducer(fabric: Any) -> Reduce | None:
    """Return how to add a tensor up over all processes; None where there is one."""
    if fabric.world_size == 1:
        return None
    return lambda tensor: fabric.all_reduce(tensor.to(fabric.device).clone(), reduce_op="sum")


def _precision(precision: str, device: str) -> Any:
    from lightning_fabric.plugins.precision import MixedPrecision, Precision

    class GrayKept(MixedPrecision):
        """Mixed precision that leaves the input alone: 0 to 255 does not fit eight bits of mantissa."""

        def convert_input(self, data: Any) -> Any:
            return data

    if precision == "32":
        return Precision()
    return GrayKept("bf16-mixed" if precision == "bf16" else "16-mixed", device)


@contextmanager
def deterministic() -> Iterator[None]:
    """Choose algorithms that give the same result each time, as far as there are such; undone at the end.

    Numbers below 1e-38 count as 0: the gradients of a network that is sure of itself are full of them, and processors
    take many times as long over each (a training step of `unet2d` 2 to 3 times).
    """
    cudnn = torch.backends.cudnn
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    flags = (cudnn.deterministic, cudnn.benchmark)
    torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = flags
