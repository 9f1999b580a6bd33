"""A network file is the trained network: it can be taken apart for its gradients, and learn on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs hemolens[train]")

from hemolens.demo import demo_source  # noqa: E402
from hemolens.errors import ConfigError, ModelError  # noqa: E402
from hemolens.inference.registry import DEFAULT_MODEL, load_model  # noqa: E402
from hemolens.inference.runtime import open_runtime  # noqa: E402
from hemolens.models import rebuild  # noqa: E402
from hemolens.models.rebuild import loosen, rebuild_network  # noqa: E402
from hemolens.preprocessing.pipeline import prepare  # noqa: E402
from hemolens.sources.study import read_volume  # noqa: E402
from hemolens.training.config import load_preset  # noqa: E402
from hemolens.training.run import first_network, run_training, settle  # noqa: E402
from hemolens.training.store import build_store  # noqa: E402
from hemolens.volume import Volume  # noqa: E402
from training_cases import heads  # noqa: E402

SHIPPED = {"start": DEFAULT_MODEL, "network.edema": True, "network.head": "attended"}


@pytest.fixture(scope="module")
def demo() -> Volume:
    return read_volume(demo_source())


@pytest.fixture(scope="module")
def shown(demo: Volume) -> Any:
    """What the network reads of some slices of the demo."""
    return torch.from_numpy(prepare(demo, load_model().preprocess).contexts[4:24:4].astype(np.float32))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("heads")
    datasets = heads(root / "data")
    members = {case.group for dataset in datasets for case in dataset.cases}
    return build_store(datasets, members, load_model().preprocess, root / "cache")


def test_the_rebuilt_network_is_the_shipped_one(demo: Volume) -> None:
    model = load_model()
    network = rebuild_network(model)
    images = prepare(demo, model.preprocess).contexts[[3, 11, 20]].astype(np.float32)
    with torch.no_grad():
        told = network(torch.from_numpy(images))
    given = open_runtime(model, "onnxruntime").run(images)
    assert np.abs(told.mask.numpy() - given["mask"]).max() < 1e-3
    assert np.abs(told.findings.numpy() - given["slice"]).max() < 1e-3


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"config": {"kind": "effunet2b"}}, "effunet2d"),
        ({"config": {"kind": "cnn2d"}}, "is not in the file"),
        (
            {"config": {"kind": "effunet2d", "decoder_channels": [96, 64, 48, 16]}},
            "no normalization follows 'decoder.3",
        ),
    ],
)
def test_a_card_that_names_another_network_is_refused(network: dict[str, Any], words: str) -> None:
    model = load_model()
    with pytest.raises(ModelError, match=words) as told:
        rebuild_network(replace(model, card={**model.card, "network": network}))
    assert "--method occlusion" in str(told.value)


def test_a_network_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a weight lost on the way, the comparison with the file would tell."""
    real = rebuild._weights
    monkeypatch.setattr(
        rebuild,
        "_weights",
        lambda c: {n: w * (1.05 if n == "slice_head.net.1.weight" else 1) for n, w in real(c).items()},
    )
    with pytest.raises(ModelError, match="results differ"):
        rebuild_network(load_model())


@pytest.mark.slow
@torch.no_grad()
def test_a_rebuilt_network_can_learn_on(shown: Any) -> None:
    """In training each batch is normalized by its own statistics: folded weights would then say something else."""
    folded, network = rebuild_network(load_model()), rebuild_network(load_model())
    loosen(network, shown)
    before, after = folded(shown), network(shown)
    assert (before.mask - after.mask).abs().max() < 1e-3
    assert (before.findings - after.findings).abs().max() < 1e-3
    encoder = network.encoder.stages[3][0].layers[0][1]  # type: ignore[union-attr,index]
    assert not torch.allclose(encoder.weight, torch.ones(()))  # ImageNet's, no more a bias alone
    folded.decoder.train()  # type: ignore[union-attr]
    network.decoder.train()  # type: ignore[union-attr]
    wrong, right = (net(shown).mask[:, 0] for net in (folded, network))
    assert (right - before.mask[:, 0]).abs().max() < 0.05
    assert (wrong - before.mask[:, 0]).abs().max() > 1


@pytest.mark.slow
def test_a_run_starts_from_a_model_that_ships(store: Any, shown: Any) -> None:
    def begun(**settings: Any) -> Any:
        network = first_network(load_preset("effunet2d", {**SHIPPED, **settings}))
        settle(network, store)
        return network

    with torch.no_grad():
        whole, shipped = begun()(shown), rebuild_network(load_model())(shown)
        assert (whole.mask - shipped.mask).abs().max() < 1e-3
        anew = begun(start_anew=("slice_head",))(shown)
        assert torch.equal(anew.mask, whole.mask)
        assert not torch.allclose(anew.findings, whole.findings, atol=0.1)
        pooled = begun(**{"network.head": "pooled", "start_anew": ("slice_head",)})(shown)
        assert torch.equal(pooled.mask, whole.mask)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"network.edema": False}, f"{DEFAULT_MODEL} is another network. Set network.edema=true."),
        ({"network.head": "pooled"}, 'Set network.head="attended".'),
        ({"start": f"{DEFAULT_MODEL}-int8"}, f"is in 8 bits, which has no gradients. Use {DEFAULT_MODEL}."),
    ],
)
@pytest.mark.slow
def test_a_model_that_a_run_cannot_start_from_is_told_before_anything_is_decoded(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    config = load_preset("effunet2d", {**SHIPPED, **settings})
    with pytest.raises((ConfigError, ModelError)) as told:
        run_training(config, heads(tmp_path / "data"), None, 0, tmp_path / "run", cache=tmp_path / "cache")
    assert words in str(told.value)
    assert not (tmp_path / "cache").exists()
