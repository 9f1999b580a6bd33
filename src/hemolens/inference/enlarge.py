"""A second look at slices on which the head is small, near the vertex and below the skull base: enlarged.

A network knows blood in heads that fill their picture. The crop is one for the whole scan, so that on such slices a
bleed of a centimeter is a few pixels of a small head, and can be missed altogether.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hemolens.preprocessing.head import own_crop
from hemolens.preprocessing.resample import Crop

Float = NDArray[np.float32]
Answer = dict[str, Float]


def answer_enlarged(images: Float, middles: NDArray[np.uint8], below: float, run: Callable[[Float], Answer]) -> Answer:
    """Run a network on slices as they are and, where the head is small, enlarged as well; both answers averaged.

    Parameters
    ----------
    images
        What the network sees, shape ``(slices, channels, size, size)``.
    middles
        The slices themselves, gray, shape ``(slices, size, size)``.
    below
        See `hemolens.preprocessing.pipeline.PreprocessConfig.enlarge_below`.
    run
        Answers ``mask``, ``(slices, channels, size, size)``, and what has one row per slice.

    Returns
    -------
    Answer
        On the pixels of `images`; a mask beyond what was enlarged is that of the whole slice alone.
    """
    answer = run(images)
    own = [(place, crop) for place, plane in enumerate(middles) if (crop := own_crop(plane, below)) is not None]
    if not own:
        return answer
    closer = run(np.stack([crop.extract(images[place]) for place, crop in own]))
    joined = {name: values.copy() for name, values in answer.items()}
    for number, (place, crop) in enumerate(own):
        for name, values in closer.items():
            if name == "mask":
                joined[name][place] = _laid_over(joined[name][place], values[number], crop)
            else:
                joined[name][place] = (joined[name][place] + values[number]) / 2
    return joined


def _laid_over(whole: Float, closer: Float, crop: Crop) -> Float:
    """Average ``(channels, size, size)`` with what was seen of the crop, within it."""
    plane = (whole.shape[-2], whole.shape[-1])
    seen = crop.restore(np.ones((1, crop.size, crop.size), dtype=np.float32), plane) > 0.5
    return np.where(seen, (whole + crop.restore(closer, plane)) / 2, whole)
