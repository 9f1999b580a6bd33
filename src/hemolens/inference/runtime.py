"""Running a network file: OpenVINO where installed (faster on CPUs), else ONNX Runtime. Both load on first use only."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import ConfigError, DependencyError
from hemolens.inference.registry import Model

Float = NDArray[np.float32]
RUNTIMES = ("openvino", "onnxruntime")
"""In the order in which ``"auto"`` takes them."""
OUTPUTS = ("mask", "slice", "scan")
"""What a network may tell, by the names of its outputs."""


class Runtime(Protocol):
    """A network that is ready to run."""

    name: str

    def run(self, images: Float) -> dict[str, Float]:
        """Map gray values to logits, by name: ``mask``, ``slice`` (of each slice) and ``scan``, as the network tells.

        Images are ``(n, channels, size, size)``, for volumes ``(n, 1, depth, size, size)``, for scans
        ``(n, slices, channels, size, size)``.
        """
        ...


def available_runtimes() -> tuple[str, ...]:
    """Return the installed runtimes, best first."""
    return tuple(name for name in RUNTIMES if importlib.util.find_spec(name) is not None)


def open_runtime(model: Model, runtime: str = "auto", threads: int | None = None) -> Runtime:
    """Load a model's network.

    Parameters
    ----------
    runtime
        ``"auto"``, ``"openvino"`` or ``"onnxruntime"``.
    threads
        CPU threads; None for all cores.

    Raises
    ------
    ConfigError
        For an unknown runtime or thread count.
    DependencyError
        If the runtime is not installed.
    ModelError
        If the network file is not the card's.
    """
    if runtime not in ("auto", *RUNTIMES):
        raise ConfigError(f"runtime '{runtime}' is unknown. Use auto, {' or '.join(RUNTIMES)}.")
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, not {threads}.")
    installed = available_runtimes()
    chosen = (installed or RUNTIMES[1:])[0] if runtime == "auto" else runtime
    if chosen not in installed:
        raise DependencyError(chosen, "openvino" if chosen == "openvino" else "all")
    openers: dict[str, Callable[[bytes, int | None], Runtime]] = {"openvino": OpenVino, "onnxruntime": OnnxRuntime}
    return openers[chosen](model.verified_bytes(), threads)


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"

    def __init__(self, network: bytes, threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session: Any = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])

        own = {output.name for output in self._session.get_outputs()}
        self._names = [name for name in OUTPUTS if name in own]

    def run(self, images: Float) -> dict[str, Float]:
        """See `Runtime.run`."""
        return dict(zip(self._names, self._session.run(self._names, {"images": images}), strict=True))


class OpenVino:
    """OpenVINO on the CPU, in 32-bit floats so that results do not hang on the processor."""

    name = "openvino"

    def __init__(self, network: bytes, threads: int | None) -> None:
        import openvino

        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        self._network: Any = core.compile_model(core.read_model(network), "CPU", settings)

        own = {name for output in self._network.outputs for name in output.get_names()}  # an output may have several
        self._names = [name for name in OUTPUTS if name in own]

    def run(self, images: Float) -> dict[str, Float]:
        """See `Runtime.run`."""
        result = self._network({"images": images})
        return {name: np.array(result[name]) for name in self._names}
