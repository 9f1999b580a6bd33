"""From a volume to a `Prediction`: prepare, run the network, gate, calibrate, bring back onto the source grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hemolens.errors import ModelError
from hemolens.inference.calibrate import sigmoid
from hemolens.inference.darkness import doubt_dark
from hemolens.inference.evidence import gather_evidence, outline_scores
from hemolens.inference.prediction import Prediction
from hemolens.inference.registry import Model
from hemolens.inference.runtime import Float, Runtime, open_runtime
from hemolens.inference.support import doubt_unsupported
from hemolens.inference.views import answer_in_views
from hemolens.inference.windows import Averaged, pieces, stacks, windows
from hemolens.labels import FINDING_NAMES, SUBTYPE_NAMES
from hemolens.preprocessing.head import own_crop
from hemolens.preprocessing.pipeline import Prepared, prepare
from hemolens.preprocessing.resample import Crop
from hemolens.volume import Volume

BATCH = 4
LONGEST_SCAN = 96
"""A network that reads scans is shown at most this many slices at a time; memory grows with them."""
WITH_SUBTYPES = 1 + len(SUBTYPE_NAMES)
"""Channels of a mask that tells blood and its subtypes; one more is edema."""
SUBTYPE_FLOOR = 0.1
"""Voxels of a lower probability of blood get no subtype."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Network output on its own grid and in its own slice order, gated; None for what a network does not tell."""

    blood: Float | None
    """Probability, shape ``(slices, size, size)``."""
    subtypes: Float | None
    """Probability of each subtype given blood, shape ``(slices, 5, size, size)``."""
    logits: Float | None
    """Of the findings of each slice, shape ``(slices, 6)``."""
    scan_logits: Float | None = None
    """Of the findings of the scan, shape ``(6,)``."""
    edema: Float | None = None
    """Probability of perihematomal edema, shape ``(slices, size, size)``."""

    def evidence(self, prepared: Prepared, context_mm: float) -> NDArray[np.float64]:
        """Return what speaks for each finding of each slice, ``(slices, 6, 3)``; NaN for what is not told."""
        unknown = np.full((len(prepared.crops), len(FINDING_NAMES)), np.nan)
        outlines = unknown if self.blood is None else outline_scores(self.blood, self.subtypes)
        head = unknown if self.logits is None else self.logits.astype(np.float64)
        return gather_evidence(outlines, head, prepared.offsets_mm, context_mm)


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
        ModelError
            If the network does not tell all that a `Prediction` holds.
        """
        self.check_complete()
        return self.finish(*self.score(volume, progress))

    def check_complete(self) -> None:
        """Make sure that the network tells all that a `Prediction` holds.

        Raises
        ------
        ModelError
            If it does not.
        """
        told = self.model.interface
        if told.mask_channels < WITH_SUBTYPES or told.sample == "volume" or not told.findings:
            raise ModelError(
                f"The model '{self.model.name}' cannot analyze a scan: that takes a network which outlines blood, "
                "tells its subtype and judges every slice (effunet2d does). Use hemolens evaluate to score this one."
            )

    def score(self, volume: Volume, progress: Callable[[float], None] | None = None) -> tuple[Prepared, Scores]:
        """Prepare a volume and run the network on it."""
        prepared = self.prepare(volume)
        return prepared, self.run(prepared, progress)

    def prepare(self, volume: Volume) -> Prepared:
        """Turn, window and crop a volume as the network wants it."""
        return prepare(volume, self.model.preprocess)

    def run(self, prepared: Prepared, progress: Callable[[float], None] | None = None) -> Scores:
        """Run the network on every slice, and average with the mirror image where it was trained to be."""
        tell = progress or (lambda fraction: None)
        runs = {"slice": self._run_slices, "volume": self._run_volume, "scan": self._run_scan}
        answer = runs[self.model.interface.sample](prepared, tell)
        mask = answer.get("mask")
        if mask is not None:
            mask[:, 0] *= prepared.gates
            wanted = self.model.preprocess
            mask[:, 0] = doubt_unsupported(mask[:, 0], prepared.offsets_mm, wanted.context_mm, wanted.neighbor_support)
            mask[:, 0] = doubt_dark(mask[:, 0], prepared.contexts[:, 1], wanted.dark_doubt)
        return Scores(
            None if mask is None else mask[:, 0],
            mask[:, 1:WITH_SUBTYPES] if mask is not None and mask.shape[1] > 1 else None,
            answer.get("slice"),
            answer.get("scan"),
            mask[:, WITH_SUBTYPES] * prepared.gates if mask is not None and mask.shape[1] > WITH_SUBTYPES else None,
        )

    def _run_slices(self, prepared: Prepared, tell: Callable[[float], None]) -> dict[str, Float]:
        below, slices = self.model.preprocess.enlarge_below, len(prepared.contexts)
        joined: dict[str, Float] = {}
        for start in range(0, slices, BATCH):
            members = slice(start, start + BATCH)
            closer = [own_crop(plane, below) for plane in prepared.contexts[members, 1]] if below else ()
            for name, values in self._answer(self._images(prepared, members), closer).items():
                if name not in joined:
                    joined[name] = np.empty((slices, *values.shape[1:]), values.dtype)
                joined[name][members] = values
            tell(min(1.0, (start + BATCH) / slices))
        return joined

    def _run_volume(self, prepared: Prepared, tell: Callable[[float], None]) -> dict[str, Float]:
        """Run windows of the network's depth; masks are averaged where they overlap, and the highest findings count."""
        depth, slices = self.model.interface.depth, len(prepared.contexts)
        shown = [(stack, window) for stack in stacks(slices, prepared.step) for window in windows(len(stack), depth)]
        joined, scan = Averaged(slices), []
        for number, (stack, window) in enumerate(shown, start=1):
            members = stack[window]
            images = np.zeros((1, 1, depth, *prepared.crops.shape[1:]), dtype=np.float32)
            images[0, 0, : len(members)] = self._images(prepared, members)[:, 0]
            answer = self._answer(images)
            if "mask" in answer:
                joined.add(members, answer["mask"][0].swapaxes(0, 1))
            if "scan" in answer:
                scan.append(answer["scan"][0])
            tell(number / len(shown))
        found = {"scan": np.max(scan, axis=0)} if scan else {}
        return {**found, "mask": joined.mean()} if self.model.interface.mask_channels else found

    def _run_scan(self, prepared: Prepared, tell: Callable[[float], None]) -> dict[str, Float]:
        """Run the whole scan at once, a very long one in pieces, of which the highest findings count."""
        slices = len(prepared.contexts)
        every = list(stacks(slices, prepared.step))
        joined, scan = Averaged(slices), []
        for number, stack in enumerate(every, start=1):
            parts = []
            for piece in pieces(len(stack), LONGEST_SCAN):
                answer = self._answer(self._images(prepared, stack[piece])[None])
                joined.add(stack[piece], answer["slice"][0])
                parts.append(answer["scan"][0])
            scan.append(np.max(parts, axis=0))
            tell(number / len(every))
        return {"slice": joined.mean(), "scan": np.mean(scan, axis=0)}

    def _images(self, prepared: Prepared, members: slice | NDArray[np.intp]) -> Float:
        """Return what the network sees of some slices, ``(slices, channels, size, size)``."""
        seen = prepared.contexts[members]
        return (seen if self.model.interface.channels == 3 else seen[:, 1:2]).astype(np.float32)

    def _answer(self, images: Float, closer: Sequence[Crop | None] = ()) -> dict[str, Float]:
        """Return probabilities for masks and logits for findings, averaged over the views that are wanted."""
        return answer_in_views(
            images,
            lambda shown: _probabilities(self.runtime.run(shown)),
            mirror=self.model.preprocess.mirror,
            closer=closer,
        )

    def judge(self, volume: Volume) -> NDArray[np.float32]:
        """Return only the calibrated probabilities of the findings of each slice, ``(slices, 6)``."""
        prepared, scores = self.score(volume)
        return prepared.restore_slices(sigmoid(self._log_odds(prepared, scores)).astype(np.float32))

    def _log_odds(self, prepared: Prepared, scores: Scores) -> NDArray[np.float64]:
        return self.model.calibration.slices(scores.evidence(prepared, self.model.preprocess.context_mm))

    def finish(self, prepared: Prepared, scores: Scores) -> Prediction:
        """Calibrate, and bring everything back onto the source grid and into the source's slice order.

        Raises
        ------
        ModelError
            If the network does not tell all that a `Prediction` holds.
        """
        self.check_complete()
        assert scores.blood is not None
        log_odds = self._log_odds(prepared, scores)
        study, interval = self.model.calibration.study(log_odds)
        blood = _in_halves(prepared, scores.blood)
        return Prediction(
            blood=blood,
            subtype=_subtype_map(prepared, scores, blood),
            slice_probability=prepared.restore_slices(sigmoid(log_odds).astype(np.float32)),
            study_probability=study.astype(np.float32),
            study_interval=interval,
            mask_threshold=self.model.thresholds.mask,
            study_threshold=self.model.thresholds.study,
            model=self.model.identity,
            edema=None if scores.edema is None else _in_halves(prepared, scores.edema),
            study_band=self.model.calibration.band(),
            sensitive_threshold=self.model.thresholds.sensitive,
            volume_log_ratio=self.model.calibration.volume_log_ratio(),
            mask_seed=self.model.thresholds.seed,
        )


def _in_halves(prepared: Prepared, probability: Float) -> NDArray[np.float16]:
    """Bring a probability onto the source grid in half precision.

    Below that precision's smallest normal number, 0.00006, it is 0: such numbers are 25 times as slow to convert.
    """
    normal = np.where(probability < np.finfo(np.float16).smallest_normal, np.float32(0), probability)
    return prepared.restore(normal).astype(np.float16)


def _subtype_map(prepared: Prepared, scores: Scores, blood: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Return the likeliest subtype of every voxel that may be blood; one subtype is on the source grid at a time."""
    assert scores.subtypes is not None
    possible = blood >= SUBTYPE_FLOOR
    shown = np.flatnonzero(possible.any(axis=(1, 2)))
    chosen = np.sort(prepared.restore_slices(np.arange(len(blood)))[shown])
    wanted = possible[shown]
    best = np.zeros(np.count_nonzero(wanted), dtype=np.float32)
    likeliest = np.zeros(best.shape, dtype=np.uint8)
    for index in range(scores.subtypes.shape[1]):
        share = prepared.restore(np.ascontiguousarray(scores.subtypes[chosen, index]))[wanted]
        higher = share > best
        likeliest[higher], best[higher] = index + 1, share[higher]
    labels = np.zeros(blood.shape, dtype=np.uint8)
    labels[possible] = likeliest
    return labels


def _probabilities(answer: dict[str, Float]) -> dict[str, Float]:
    """Turn the mask's logits into the probability of blood, of each subtype given blood, and of edema."""
    mask = answer.get("mask")
    if mask is None:
        return answer
    subtypes = [_softmax(mask[:, 1:WITH_SUBTYPES])] if mask.shape[1] > 1 else []
    parts = [_sigmoid(mask[:, :1]), *subtypes, _sigmoid(mask[:, WITH_SUBTYPES:])]
    return {**answer, "mask": np.concatenate(parts, axis=1)}


def _sigmoid(x: Float) -> Float:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), dtype=np.float32)


def _softmax(x: Float) -> Float:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), dtype=np.float32)
