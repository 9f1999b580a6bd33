"""Every preset trains: at a tiny size and width the loss falls, a cut is mended, and the exported model agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from hemolens.inference.predictor import Predictor  # noqa: E402
from hemolens.inference.registry import load_model  # noqa: E402
from hemolens.inference.runtime import open_runtime  # noqa: E402
from hemolens.models.export import output_names  # noqa: E402
from hemolens.sources.datasets.opening import open_datasets  # noqa: E402
from hemolens.sources.splits import Fold, Split  # noqa: E402
from hemolens.training.config import load_preset, preset_names  # noqa: E402
from hemolens.training.loop import Progress  # noqa: E402
from hemolens.training.run import RunResult, run_training  # noqa: E402
from training_cases import weights, write_heads  # noqa: E402

pytestmark = pytest.mark.slow
SMALL: dict[str, dict[str, Any]] = {
    "unet2d": {"network.width": 4, "network.depth": 2},
    "cnn2d": {"network.widths": [4, 8, 8], "network.hidden": 8, "network.dropout": 0.1},
    "resnet2d": {"network.width": 4, "network.blocks": [1, 1, 1, 1], "network.dropout": 0.1},
    "unet3d": {"network.widths": [4, 8, 8], "network.depth": 4},
    "cnn3d": {"network.widths": [4, 8, 8], "network.depth": 4, "network.hidden": 8, "network.dropout": 0.1},
    "sequence": {"network.hidden": 16, "network.dropout": 0.1, "data.depth": 4},
    "effunet2d": {"network.decoder_channels": [16, 8, 8, 8]},
}
STEPS = 24


def settings(name: str, size: int, **more: Any) -> Any:
    kind = load_preset(name).network.kind
    rate = 1e-2 if kind not in ("sequence", "effunet2d") else 4e-3
    return load_preset(name, {
        **SMALL[kind], "preprocess.size": size, "steps": STEPS, "batch": 4, "data.workers": 0, "tensorboard": False,
        "log_every": 6, "checkpoint_every": 8, "validate_every": 12, "stop_after": 0, "optimizer.rate": rate,
        "schedule.warmup_steps": 2, "optimizer.ema_decay": 0.8, **more,
    })  # fmt: skip


class CutError(Exception):
    pass


def cut(progress: Progress) -> None:
    if progress.stage == "train" and progress.step == 11:
        raise CutError


def check(config: Any, datasets: Any, split: Split | None, folder: Path, falls: float) -> RunResult:
    """Train unbroken and with a cut, and compare; then compare the exported model with the network in torch."""
    cache = folder / "cache"
    whole = run_training(config, datasets, split, 0, folder / "whole", cache=cache)
    losses = [row["loss"] for row in whole.rows]
    assert np.isfinite(losses).all()
    assert losses[-1] < falls * losses[0], losses
    with pytest.raises(CutError):
        run_training(config, datasets, split, 0, folder / "cut", cache=cache, progress=cut, export=False)
    again = run_training(config, datasets, split, 0, folder / "cut", cache=cache, resume=True, export=False)
    assert torch.equal(weights(again.network), weights(whole.network))

    model = load_model(str(folder / "whole"))
    assert model.card["network"]["export_difference"] < 1e-3
    network = whole.network
    shape = {
        "slice": (2, network.channels), "volume": (2, 1, network.depth), "scan": (2, 3, network.channels)
    }[network.sample]  # fmt: skip
    images = np.random.default_rng(0).uniform(0, 255, (*shape, config.preprocess.size, config.preprocess.size))
    images = images.astype(np.float32)
    told = open_runtime(model, "onnxruntime", 1).run(images)
    assert set(told) == set(output_names(network))
    with torch.no_grad():
        expected = [part for part in network(torch.from_numpy(images)) if part is not None]
    for name, value in zip(output_names(network), expected, strict=True):
        assert np.allclose(told[name], value.numpy(), atol=1e-3), name
    case = datasets[0].cases[0]
    _, scores = Predictor(model, "onnxruntime", 1).score(datasets[0].volume(case))
    found = [s for s in (scores.blood, scores.logits, scores.scan_logits) if s is not None]
    assert found
    assert all(np.isfinite(s).all() for s in found)
    return whole


@pytest.mark.parametrize("name", [n for n in preset_names() if n != "effunet2d"])
def test_a_preset_trains(name: str, tmp_path: Path) -> None:
    size = 64 if name in ("resnet2d", "sequence") else 32
    datasets = open_datasets(write_heads(tmp_path / "heads"))
    check(settings(name, size), datasets, None, tmp_path, falls=0.95)


def test_effunet2d_trains_on_real_slices(data: Path, tmp_path: Path) -> None:
    """With ImageNet weights, synthetic bleeds and weak labels, on three CT-ICH patients."""
    datasets = open_datasets(data, ("ct_ich",))
    patients = tuple(c.patient for c in datasets[0].cases)
    fold = Fold(
        ("ct_ich/058", "ct_ich/100") if "058" in patients else ("ct_ich/100", "ct_ich/070"), ("ct_ich/078",), ()
    )
    split = Split("patient", 0, {"ct_ich": patients}, (fold,))
    result = check(settings("effunet2d", 64, batch=12, steps=36), datasets, split, tmp_path, falls=0.9)
    assert {"mask_bce", "mask_dice", "subtype", "outside", "findings"} <= result.rows[-1].keys()
    assert "val_loss" in result.rows[-1]
