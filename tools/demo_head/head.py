"""The whole head in the scanner: pose, tissue, bleeds and headrest at any point of the room, in LPS millimeters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo_head import anatomy as tissue
from demo_head import bleeds
from demo_head.anatomy import AIR_HU, Anatomy
from demo_head.fields import Field, blend, step
from demo_head.skull_base import TOP_MM, base_hu, face_hu

SCALE = 0.955
"""The MNI152 brain is larger than most; the head is made this much smaller."""
CENTER_ATLAS_MM = (0.0, -18.0, 0.0)
TURN_DEG = (3.0, 4.0, -6.0)
"""About the left-right, front-back and up-down axis: nobody lies straight."""
TABLE_HU, FOAM_HU = 190.0, -965.0


@dataclass(frozen=True, eq=False)
class Head:
    """A phantom that can be asked for HU and truth anywhere."""

    anatomy: Anatomy

    @classmethod
    def make(cls, seed: int) -> Head:
        """Build the head; the same seed gives the same head."""
        return cls(tissue.load(seed))

    def atlas(self, points_mm: Field) -> Field:
        """Map LPS millimeters of the room to atlas points."""
        ras = np.asarray(points_mm, np.float32) * np.float32([-1, -1, 1])
        turned = ras @ rotation(TURN_DEG).astype(np.float32) / np.float32(SCALE) + np.float32(CENTER_ATLAS_MM)
        return tissue.warped(self.anatomy, turned)

    def hu(self, points_mm: Field) -> Field:
        """Return HU at ``(n, 3)`` points of the room."""
        head = self.atlas(points_mm)
        inner = self.anatomy.inner(head)
        hu = _headrest(points_mm)
        deep = (inner < -1.5) & (head[:, 2] > TOP_MM)
        shallow = ~deep & (inner < 62.0)
        for chosen in (deep, shallow):
            for some in np.array_split(np.flatnonzero(chosen), max(1, chosen.sum() // 60_000)):
                if some.size:
                    hu[some] = self._inside(head[some]) if chosen is deep else self._anywhere(head[some], hu[some])
        return hu

    def bleeds(self, points_mm: Field) -> dict[str, Field]:
        """Return the signed distance (negative inside, atlas millimeters) to each bleed at ``(n, 3)`` points."""
        head = self.atlas(points_mm)
        inner = self.anatomy.inner(head)
        return bleeds.distances(self.anatomy, head, inner, bleeds.pressed(self.anatomy, head, inner))

    def _inside(self, head: Field) -> Field:
        at = tissue.place(self.anatomy, head)
        brain = bleeds.pressed(self.anatomy, head, at.inner)
        return bleeds.bleed_hu(self.anatomy, tissue.brain_hu(self.anatomy, at, brain), at, brain)

    def _anywhere(self, head: Field, room: Field) -> Field:
        at = tissue.place(self.anatomy, head)
        outside = tissue.soft_tissue_hu(at)
        outside = blend(room, outside, step(at.skin))
        outside = face_hu(tissue.skull_hu(outside, at), at)
        brain = bleeds.pressed(self.anatomy, head, at.inner)
        within = bleeds.bleed_hu(self.anatomy, tissue.brain_hu(self.anatomy, at, brain), at, brain)
        return base_hu(self.anatomy, blend(outside, within, step(at.inner)), at)


def rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Return the rotation about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _headrest(points_mm: Field) -> Field:
    """Return air with the shell and the foam of a headrest behind the head."""
    x, y = points_mm[:, 0], points_mm[:, 1]
    shell = (np.hypot(x / 107.0, (y + 8.0) / 109.0) - 1.0) * 108.0
    low = 12.0 - y
    hu = np.full(x.shape, AIR_HU, np.float32)
    hu = blend(hu, np.float32(FOAM_HU), step(np.maximum(shell, 50.0 - y), 2.0))
    return blend(hu, np.float32(TABLE_HU), step(np.maximum(np.abs(shell) - 1.1, low), 0.5))
