"""From a volume to a `Prediction`: prepare, run the network, gate, calibrate, bring back onto the source grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hemolens.inference.calibrate import logit, sigmoid
from hemolens.inference.prediction import Prediction
from hemolens.inference.registry import Model
from hemolens.inference.runtime import Float, Runtime, open_runtime
from hemolens.preprocessing.pipeline import Prepared, prepare
from hemolens.volume import Volume

BATCH = 4
TOP_PIXELS = 30
"""A slice's mask score is the mean probability of this many pixels of the crop: about 0.4 square centimeters."""
SUBTYPE_FLOOR = 0.1
"""Voxels of a lower probability of blood get no subtype."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Network output on its own grid and in its own slice order, mirrored copies averaged, gated."""

    blood: Float
    """Probability, shape ``(slices, size, size)``."""
    subtypes: Float
    """Probability of each subtype given blood, shape ``(slices, 5, size, size)``."""
    logits: Float
    """The slice head's, shape ``(slices, 6)``."""

    @property
    def mask_scores(self) -> NDArray[np.float64]:
        """Log-odds of the mean of the `TOP_PIXELS` brightest pixels of each slice."""
        flat = self.blood.reshape(len(self.blood), -1)
        return logit(np.partition(flat, -TOP_PIXELS, axis=1)[:, -TOP_PIXELS:].mean(axis=1))


class Predictor:
    """A model, loaded once, for any number of scans.

    Parameters
    ----------
    model
        From `hemolens.inference.registry.load_model`.
    runtime, threads
        See `hemolens.inference.runtime.open_runtime`.
    """

    def __init__(self, model: Model, runtime: str = "auto", threads: int | None = None) -> None:
        self.model = model
        self.runtime: Runtime = open_runtime(model, runtime, threads)

    def predict(self, volume: Volume, progress: Callable[[float], None] | None = None) -> Prediction:
        """Return the probabilities for every voxel, slice and the scan.

        Raises
        ------
        GeometryError
            If the slices are not axial.
        """
        return self.finish(*self.score(volume, progress))

    def score(self, volume: Volume, progress: Callable[[float], None] | None = None) -> tuple[Prepared, Scores]:
        """Prepare a volume and run the network on it."""
        prepared = self.prepare(volume)
        return prepared, self.run(prepared, progress)

    def prepare(self, volume: Volume) -> Prepared:
        """Turn, window and crop a volume as the network wants it."""
        return prepare(volume, self.model.preprocess)

    def run(self, prepared: Prepared, progress: Callable[[float], None] | None = None) -> Scores:
        """Run the network on every slice and its mirror image, and average the two."""
        masks, logits = [], []
        for start in range(0, len(prepared.contexts), BATCH):
            images = prepared.contexts[start : start + BATCH].astype(np.float32)
            mask, slices = self.runtime.run(images)
            mirrored, mirrored_slices = self.runtime.run(np.ascontiguousarray(images[..., ::-1]))
            mirrored = mirrored[..., ::-1]
            blood = (_sigmoid(mask[:, :1]) + _sigmoid(mirrored[:, :1])) / 2
            subtypes = (_softmax(mask[:, 1:]) + _softmax(mirrored[:, 1:])) / 2
            masks.append(np.concatenate([blood * prepared.gates[start : start + BATCH, None], subtypes], axis=1))
            logits.append((slices + mirrored_slices) / 2)
            if progress:
                progress(min(1.0, (start + BATCH) / len(prepared.contexts)))
        joined = np.concatenate(masks)
        return Scores(joined[:, 0], joined[:, 1:], np.concatenate(logits))

    def finish(self, prepared: Prepared, scores: Scores) -> Prediction:
        """Calibrate, and bring everything back onto the source grid and into the source's slice order."""
        log_odds = self.model.calibration.slices(scores.mask_scores, scores.logits.astype(np.float64))
        study, interval = self.model.calibration.study(log_odds)
        blood = prepared.restore(scores.blood).astype(np.float16)
        return Prediction(
            blood=blood,
            subtype=_subtype_map(prepared, scores, blood),
            slice_probability=prepared.restore_slices(sigmoid(log_odds).astype(np.float32)),
            study_probability=study.astype(np.float32),
            study_interval=interval,
            mask_threshold=self.model.thresholds.mask,
            study_threshold=self.model.thresholds.study,
            model=self.model.identity,
        )


def _subtype_map(prepared: Prepared, scores: Scores, blood: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Return the likeliest subtype of every voxel that may be blood; one subtype is on the source grid at a time."""
    best = np.zeros(blood.shape, dtype=np.float32)
    labels = np.zeros(blood.shape, dtype=np.uint8)
    for index in range(scores.subtypes.shape[1]):
        share = prepared.restore(np.ascontiguousarray(scores.subtypes[:, index]))
        higher = share > best
        labels[higher] = index + 1
        best[higher] = share[higher]
    labels[blood < SUBTYPE_FLOOR] = 0
    return labels


def _sigmoid(x: Float) -> Float:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), dtype=np.float32)


def _softmax(x: Float) -> Float:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), dtype=np.float32)
