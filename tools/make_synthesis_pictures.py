"""Draw the pictures of docs/how-to/synthesis.md: bleeds and what looks like them, painted into the demo head.

python tools/make_synthesis_pictures.py
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent))

from demo_head import anatomy as tissue
from demo_head.fields import blend, step
from demo_head.head import Head
from demo_head.series import Protocol, render
from demo_head.skull_base import base_hu, face_hu

from hemolens.demo import demo_source
from hemolens.labels import SUBTYPES
from hemolens.preprocessing.head import skull_inside
from hemolens.preprocessing.pipeline import PreprocessConfig, prepare
from hemolens.sources.datasets.cases import EDEMA
from hemolens.sources.study import read_volume
from hemolens.training.synthesis import Painted, SynthesisConfig, paint
from hemolens.training.synthesis_negatives import NEGATIVES
from hemolens.training.synthesis_shapes import Scene

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "how-to"
SIZE = 224
SEED = 7
LEVELS = (7, 13, 18)
"""Slices of the demo series: cisterns, ventricles, above them."""
VENTRICLES = 1
EDEMA_RGB = (90, 220, 120)
Gray = NDArray[np.uint8]


class HealthyHead(Head):
    """The demo head without its bleeds and what they push aside."""

    def _inside(self, head: NDArray[np.float32]) -> NDArray[np.float32]:
        at = tissue.place(self.anatomy, head)
        return tissue.brain_hu(self.anatomy, at, head)

    def _anywhere(self, head: NDArray[np.float32], room: NDArray[np.float32]) -> NDArray[np.float32]:
        at = tissue.place(self.anatomy, head)
        outside = blend(room, tissue.soft_tissue_hu(at), step(at.skin))
        outside = face_hu(tissue.skull_hu(outside, at), at)
        within = tissue.brain_hu(self.anatomy, at, head)
        return base_hu(self.anatomy, blend(outside, within, step(at.inner)), at)


def main() -> None:
    """Paint, outline, lay out and write."""
    whole = read_volume(demo_source())  # gives every slice the crop of the whole head
    head, protocol = HealthyHead(tissue.load(SEED)), Protocol()
    hu = whole.hu.astype(np.int16).copy()
    for index in LEVELS:
        hu[index] = render(protocol, head, index, SEED, parts=3)
    crops = prepare(replace(whole, hu=hu), PreprocessConfig(size=SIZE)).crops[list(LEVELS)]
    skulls = np.stack([skull_inside(image) for image in crops])
    rows = [bleeds(crops, skulls, number) for number in range(len(SUBTYPES))]
    write(np.concatenate(rows), "synthesis-bleeds.png", [s.title for s in SUBTYPES])
    tiles = []
    for number, (negative, _) in enumerate(NEGATIVES):
        k = number % len(LEVELS)
        scene = Scene(crops[k].astype(np.float32), skulls[k])
        image = np.clip(np.rint(scene.image + negative(scene, np.random.default_rng(3 * number + 2))), 0, 255)
        tiles.append(np.repeat(image.astype(np.uint8)[:, :, None], 3, axis=2))
    wide = [np.concatenate(tiles[k : k + 5], axis=1) for k in range(0, len(tiles), 5)]
    write(np.concatenate(wide), "synthesis-negatives.png", [])


def bleeds(crops: Gray, skulls: NDArray[np.bool_], number: int) -> Gray:
    """Return a row: three bleeds of one kind, each plain and outlined."""
    weights = tuple(float(k == number) for k in range(len(SUBTYPES)))
    config = SynthesisConfig(subtype_weights=weights, hard_negative=0, second_bleed=0, faint=0.1)  # type: ignore[arg-type]
    tiles, seed = [], 40 * number
    while len(tiles) < 3:
        k = VENTRICLES if number == len(SUBTYPES) - 1 else seed % len(crops)  # not every slice has a place for each
        painted = paint(crops[[k, k, k]], skulls[k], config, np.random.default_rng(seed))
        seed += 1
        if painted is not None and 120 < (painted.labels[1] > 0).sum() < 4000:
            tiles.append(outlined(painted))
    return np.concatenate(tiles, axis=1)


def outlined(painted: Painted) -> Gray:
    """Return the middle slice, and beside it the same with its truth."""
    plain = np.repeat(painted.images[1][:, :, None], 3, axis=2)
    drawn = plain.copy()
    for label, color in [*((s.index, s.color_rgb) for s in SUBTYPES), (EDEMA, EDEMA_RGB)]:
        mask = painted.labels[1] == label
        drawn[mask & ~ndimage.binary_erosion(mask)] = color
    return np.concatenate([plain, drawn], axis=1)


def write(picture: Gray, name: str, titles: list[str]) -> None:
    """Write a small PNG, with a title in each row."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for row, title in enumerate(titles):
        draw.text((4, row * SIZE + 2), title, fill=(255, 255, 255))
    image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
    image.save(FOLDER / name, optimize=True)
    print(FOLDER / name, (FOLDER / name).stat().st_size)


if __name__ == "__main__":
    main()
