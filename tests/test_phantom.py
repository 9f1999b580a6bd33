"""The yardstick is checked too: the phantom's formulas against brute force on a fine grid."""

from __future__ import annotations

import numpy as np
import pytest

from hemolens.geometry import Stack
from phantom import AXES, BLOOD_HU, ORIENTATIONS, Ellipsoid, rotation_about, sample

TURN = rotation_about((1, 2, -1), 40.0)
LESION = Ellipsoid((3.0, -2.0, 5.0), (8.0, 5.0, 11.0), tuple(map(tuple, TURN)), subtype=2)


def test_volume_and_centroid_by_brute_force() -> None:
    axis = np.arange(-14, 14, 0.25) + 0.1
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1) + LESION.center_mm
    inside = points[LESION.contains(points)]
    assert len(inside) * 0.25**3 / 1000 == pytest.approx(LESION.volume_ml, rel=2e-3)
    np.testing.assert_allclose(inside.mean(axis=0), LESION.center_mm, atol=0.02)


@pytest.mark.parametrize("direction", [(1, 0, 0), (0, 0, 1), (0.6, 0.0, 0.8)])
def test_half_width_is_the_farthest_point_along_a_direction(direction: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(0)
    sphere = rng.standard_normal((200_000, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    surface = (sphere * LESION.semi_axes_mm) @ TURN
    assert (surface @ direction).max() == pytest.approx(LESION.half_width_along(direction), rel=1e-3)


def test_rotation_is_a_rotation() -> None:
    np.testing.assert_allclose(TURN @ TURN.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(TURN) == pytest.approx(1)
    np.testing.assert_allclose(rotation_about((0, 0, 1), 90) @ (1, 0, 0), (0, 1, 0), atol=1e-12)


def test_there_are_24_orientations() -> None:
    assert len(set(AXES)) == 6
    assert len(set(ORIENTATIONS)) == 24


def test_sample_paints_what_it_labels() -> None:
    mask = sample(Stack.regular(12, (-9, -14, -8), step_mm=(0, 0, 2)), 25, 25, LESION)
    assert set(np.unique(mask.labels)) == {0, 2}
    np.testing.assert_array_equal(mask.volume.hu == BLOOD_HU, mask.labels == 2)
