"""The two views of a slice that a network is shown, and how its answers are joined.

The second one is the mirror image. A network knows blood in heads that fill their picture, and the crop is one for the
whole scan: near the vertex and below the skull base the head is small in it, a bleed of a centimeter a few pixels, and
can be missed altogether. So there the second view is enlarged as well, which runs the network no more often.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hemolens.preprocessing.resample import Crop

Float = NDArray[np.float32]
Answer = dict[str, Float]
MASK = "mask"
"""The answer that lies on the pixels of the picture; all others have one row per sample."""


def answer_in_views(
    images: Float, run: Callable[[Float], Answer], *, mirror: bool, closer: Sequence[Crop | None] = ()
) -> Answer:
    """Run a network on samples as they are and once more, and average both answers.

    Parameters
    ----------
    images
        What the network sees, shape ``(n, …, size, size)``.
    run
        The network; its answers are its caller's to change.
    mirror
        Show the mirror image of every sample.
    closer
        For each sample the square that the second view shows in place of all, in pixels of `images`; None for all.

    Returns
    -------
    Answer
        On the pixels of `images`; a mask beyond the square is that of the first view alone.
    """
    answer = run(images)
    crops = list(closer) or [None] * len(images)
    places = [place for place, crop in enumerate(crops) if mirror or crop is not None]
    if not places:
        return answer
    shown = images[places]
    for number, place in enumerate(places):
        if (crop := crops[place]) is not None:
            shown[number] = crop.extract(images[place])
    second = run(np.ascontiguousarray(shown[..., ::-1])) if mirror else run(shown)
    if mirror and MASK in second:
        second[MASK] = second[MASK][..., ::-1]
    for name, values in answer.items():
        for seen, place in zip(second[name], places, strict=True):
            crop = crops[place] if name == MASK else None
            _average(values[place], seen, crop)
    return answer


def _average(first: Float, second: Float, crop: Crop | None) -> None:
    """Set `first` to the average of both, of ``(channels, size, size)`` only where the second one's crop lies."""
    if crop is not None:
        plane = (first.shape[-2], first.shape[-1])
        there = (..., *crop.covered(plane))
        first, second = first[there], crop.restore(second, plane)[there]
    first += second
    first /= 2
