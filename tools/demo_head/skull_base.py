"""The skull's floor and the face above the mouth: orbits, air sinuses, petrous bones, mastoids, sella, cheek bones.

Shapes are given in atlas millimeters for the right side (see `Place.folded`); below `TOP` only.
"""

from __future__ import annotations

import numpy as np

from demo_head.anatomy import AIR_HU, FAT_HU, Anatomy, Place
from demo_head.fields import Field, blend, bump, capsule, ellipsoid, step

TOP_MM = 8.0
EYE_HU, LENS_HU, SCLERA_HU, CORD_HU = 10.0, 78.0, 55.0, 38.0


def face_hu(under: Field, at: Place) -> Field:
    """Paint orbits, nose, air sinuses and cheek bones below the front of the skull."""
    if at.head[..., 2].min() > TOP_MM:
        return under
    fine = at.noise["fine"]
    ethmoid = ellipsoid(at.head, (0, 42, -42), (14.5, 29, 21))
    apex = capsule(at.folded, (30, 52, -38), (16, 22, -31), 15.5, 4.0)
    orbit = np.minimum(ellipsoid(at.folded, (32, 58, -38), (18.5, 17, 17.5)), apex)
    maxillary = ellipsoid(at.folded, (31, 46, -70), (15, 17, 15))
    frontal = np.maximum(ellipsoid(at.folded, (11, 76, -15), (14, 5, 14)) + 0.8 * fine, at.skin + 7.0)
    nose = np.maximum(ellipsoid(at.head, (0, 72, -50), (8.5, 15, 24)), at.skin + 4.0)
    walls = np.minimum(np.minimum(ethmoid, orbit), np.minimum(maxillary, frontal)) - 1.3
    bone = np.minimum(np.minimum(np.maximum(walls, at.skin + 8.0), nose - 1.2), _cheek(at)) + 0.3 * fine
    hu = blend(under, 820.0 + 240.0 * fine, step(np.maximum(bone, -at.inner), 0.5))
    off_midline = np.abs(at.head[..., 0] - 0.8 * at.noise["middle"])
    septa = np.maximum(0.30 - np.abs(fine) * 1.6, 0.8 - off_midline)
    cavities = ((ethmoid + 0.4, septa), (maxillary + 0.5, at.skin + 9.0), (frontal + 0.6, septa * 0.5), (nose, septa))
    for cavity, partition in cavities:
        hu = blend(hu, np.float32(AIR_HU), step(np.maximum(np.maximum(cavity, partition), 1.0 - at.inner), 0.5))
    return _orbit(hu, at, orbit)


def _cheek(at: Place) -> Field:
    """Return the signed distance to zygoma, its arch and the condyles."""
    pieces = [
        capsule(at.folded, (67, -10, -50), (67, 26, -52), 2.6),
        capsule(at.folded, (66, 28, -52), (47, 60, -46), 3.0, 6.0),
        capsule(at.folded, (49, 60, -44), (50, 56, -20), 4.5, 3.5),
        ellipsoid(at.folded, (54, -13, -56), (9, 5, 8)),
        ellipsoid(at.folded, (20, -44, -76), (8, 13, 8)),
    ]
    return np.minimum.reduce([np.maximum(piece, at.skin + 2.0) for piece in pieces])


def _orbit(under: Field, at: Place, orbit: Field) -> Field:
    """Paint fat, the globe with its lens, the optic nerve and the straight muscles of the eye."""
    room = np.maximum(np.maximum(orbit, 1.8 - at.inner), at.skin + 2.0)
    cords = np.minimum.reduce(
        [
            capsule(at.folded, (32, 50, -39), (16, 23, -31), 2.0),
            capsule(at.folded, (20, 58, -39), (16, 25, -32), 1.9),
            capsule(at.folded, (46, 56, -39), (20, 25, -32), 1.8),
            capsule(at.folded, (32, 56, -27), (18, 25, -28), 2.2),
        ]
    )
    globe = ellipsoid(at.folded, (33, 62, -39), (12.2, 12.0, 12.2))
    hu = blend(under, np.float32(FAT_HU), step(room, 0.5))
    hu = blend(hu, np.float32(CORD_HU), step(np.maximum(cords, room), 0.6))
    hu = blend(hu, np.float32(SCLERA_HU), step(globe, 0.5))
    hu = blend(hu, np.float32(EYE_HU), step(globe + 1.3, 0.5))
    return blend(hu, np.float32(LENS_HU), step(ellipsoid(at.folded, (33, 70.5, -39), (4.6, 2.3, 4.6)), 0.5))


def base_hu(anatomy: Anatomy, under: Field, at: Place) -> Field:
    """Paint what stands up from the floor into the skull wherever no brain is, with the air cells in it."""
    if at.head[..., 2].min() > TOP_MM:
        return under
    fine, tiny = at.noise["fine"], at.noise["tiny"]
    ragged = 0.6 * fine + 0.8 * at.noise["middle"]
    free = 1.4 - anatomy.brain(at.head)
    bone = np.minimum.reduce(
        [
            capsule(at.folded, (62, -36, -42), (15, -13, -40), 12.0, 6.5),
            capsule(at.folded, (12, 13, -21), (60, 22, -12), 2.2, 4.0),
            ellipsoid(at.head, (0, 6, -50), (17, 20, 15)),
            capsule(at.head, (0, -5, -35), (0, -26, -68), 4.0, 5.0),
            capsule(at.folded, (13, 12, -21), (9.5, 5, -24), 2.0, 1.2),
        ]
    )
    dense = 900.0 + 260.0 * fine + 800.0 * bump(at.folded, (38, -25, -41), 9.0)
    hu = blend(under, np.maximum(dense, 250.0), step(np.maximum(bone + ragged, free), 0.5))
    process = np.maximum(ellipsoid(at.folded, (62, -40, -48), (11, 15, 19)), free)
    cells = np.maximum(process + 1.5, 0.25 - 0.9 * (tiny + 0.5 * fine))
    hu = blend(hu, 1050.0 + 150.0 * tiny, step(process, 0.6))
    hu = blend(hu, np.float32(-880.0), step(cells, 0.5))
    canal = np.minimum(
        capsule(at.folded, (50, -24, -43), (96, -29, -40), 3.0), ellipsoid(at.folded, (45, -24, -42), (3, 6, 6))
    )
    hu = blend(hu, np.float32(AIR_HU), step(canal, 0.5))
    sphenoid = np.maximum(ellipsoid(at.head, (0, 10, -47), (13, 13, 9)), 0.6 - np.abs(at.head[..., 0] - 2.0))
    return blend(hu, np.float32(AIR_HU), step(np.maximum(sphenoid + 0.4 * ragged, free), 0.5))
