"""What a scan goes through elsewhere, done to scans whose truth is known: to see which change costs how much.

Each corruption changes the Hounsfield units of a scan and its labels together, so that the score after it can be set
beside the score before it. Nothing here is used in training.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from hemolens.geometry import Stack
from hemolens.preprocessing.window import AIR_HU, BONE_HU, CUT_OFF_HU, at_edge, to_gray, to_hu
from hemolens.sources.datasets.cases import UNKNOWN
from hemolens.volume import DisplayWindow, SourceInfo, Volume

Float = NDArray[np.float32]
SKULL_HU = 90.0
"""Bone is brighter than this, also in images whose window ends at 100 HU."""
SKULL_DEPTH = 0.12
"""How far the opened skull reaches inward, in diameters of the head."""
SOFT_TISSUE_HU = 38.0


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan with what is known of it, while it is being changed.

    Parameters
    ----------
    hu
        Shape ``(slices, rows, columns)``.
    labels
        As a data set gives them, same shape.
    sources
        For each slice the slices of the published scan that its truth is taken from.
    window
        Of 8-bit images; None for others.
    pixel_mm, slice_mm
        Distance between pixels and between slices, as a reader would be told.
    """

    hu: Float
    labels: NDArray[np.uint8]
    sources: tuple[tuple[int, ...], ...]
    window: DisplayWindow | None
    pixel_mm: float = 0.45
    slice_mm: float = 5.0

    @classmethod
    def of(cls, volume: Volume, labels: NDArray[np.uint8], pixel_mm: float = 0.45, slice_mm: float = 5.0) -> Scan:
        """Take a published scan."""
        sources = tuple((k,) for k in range(len(volume)))
        return cls(volume.hu.astype(np.float32), labels, sources, volume.source.window, pixel_mm, slice_mm)

    def volume(self) -> Volume:
        """Return it as a volume of axial slices, as a reader would."""
        spacing = (self.pixel_mm, self.pixel_mm)
        stack = Stack.regular(len(self.hu), spacing_mm=spacing, step_mm=(0, 0, self.slice_mm))
        return Volume(self.hu, stack, SourceInfo("images", "corrupted", window=self.window))

    @property
    def air_hu(self) -> float:
        """What surrounds the head."""
        return self.window.low_hu if self.window is not None else float(self.hu.min())


Change = Callable[[Scan, np.random.Generator], Scan]


@dataclass(frozen=True)
class Corruption:
    """One change, with a name for tables."""

    name: str
    title: str
    change: Change
    mixes: bool = False
    """Whether slices then hold parts of published ones, so that the truth of these need not be theirs."""
    across: bool = False
    """Whether it changes how slices lie to each other, which a slice without its scan cannot show."""


def told_window(level_hu: float, width_hu: float) -> Change:
    """Render through a narrower window, and say so: what lies outside is cut off."""

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        window = DisplayWindow(level_hu, width_hu)
        return replace(scan, hu=to_hu(to_gray(scan.hu, window), window), window=window)

    return change


def untold_window(level_hu: float, width_hu: float) -> Change:
    """Render through another window and take the image for one of the usual window: a slip that happens.

    What an 8-bit image shows black or white lies beyond its window: air and bone stay so through a wider one, too.
    """

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        gray = to_gray(scan.hu, DisplayWindow(level_hu, width_hu))
        if scan.window is not None:
            gray[scan.hu <= scan.window.low_hu + CUT_OFF_HU] = 0
            gray[scan.hu >= scan.window.high_hu - CUT_OFF_HU] = 255
        return replace(scan, hu=to_hu(gray), window=DisplayWindow())

    return change


def of_whole_range(mixed: Change) -> Change:
    """Mix pixels as a scanner does, which has bone and air of their own Hounsfield units.

    An 8-bit image shows bone as 100 HU: half of it and half of brain would be as bright as blood, and are white in
    truth. So what is white is bone, and what is black around the head is air (`BONE_HU`, `AIR_HU`), while pixels are
    mixed; after that the image is cut off again. Images that were not cut off are mixed as they are.
    """

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        if scan.window is None:
            return mixed(scan, rng)
        low, high, hu = scan.window.low_hu, scan.window.high_hu, scan.hu.copy()
        for plane in hu:
            bone, air = plane >= high - CUT_OFF_HU, at_edge(plane <= low + CUT_OFF_HU)
            plane[bone], plane[air] = BONE_HU, AIR_HU
        after = mixed(replace(scan, hu=hu), rng)
        return replace(after, hu=np.clip(after.hu, low, high))

    return change


def noise(sd_hu: float) -> Change:
    """Add white noise, as a low dose does."""

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        return replace(scan, hu=scan.hu + rng.normal(0, sd_hu, scan.hu.shape).astype(np.float32))

    return change


def blur(sd_px: float) -> Change:
    """Smooth in the plane, as a soft kernel does."""

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        return replace(scan, hu=ndimage.gaussian_filter(scan.hu, (0, sd_px, sd_px)))

    return change


def jpeg(quality: int) -> Change:
    """Store slices as JPEG images of the usual window."""

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        window = scan.window or DisplayWindow()
        kept = []
        for plane in to_gray(scan.hu, window):
            stored = io.BytesIO()
            Image.fromarray(plane).save(stored, "JPEG", quality=quality)
            kept.append(np.asarray(Image.open(stored)))
        return replace(scan, hu=to_hu(np.stack(kept), window), window=window)

    return change


def moved(angle_deg: float = 0.0, shift: tuple[float, float] = (0.0, 0.0), scale: float = 1.0) -> Change:
    """Turn, shift (as a share of the image) and scale the head in its plane."""

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        a = np.deg2rad(angle_deg)
        matrix = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) / scale
        size = np.array(scan.hu.shape[1:], dtype=float)
        center = (size - 1) / 2
        offset = center - matrix @ (center + np.array(shift) * size)

        def resampled(plane: NDArray[np.generic], order: int, outside: float) -> NDArray[np.generic]:
            moved_plane = ndimage.affine_transform(plane, matrix, offset, order=order, cval=outside)
            return np.asarray(moved_plane, dtype=plane.dtype)

        hu = np.stack([resampled(plane, 1, scan.air_hu) for plane in scan.hu]).astype(np.float32)
        labels = np.stack([resampled(plane, 0, 0) for plane in scan.labels]).astype(np.uint8)
        return replace(scan, hu=hu, labels=labels, pixel_mm=scan.pixel_mm / scale)

    return change


def mirrored(scan: Scan, rng: np.random.Generator) -> Scan:
    """Swap left and right."""
    return replace(
        scan, hu=np.ascontiguousarray(scan.hu[..., ::-1]), labels=np.ascontiguousarray(scan.labels[..., ::-1])
    )


def thicker(times: float) -> Change:
    """Average neighboring slices into `times` as thick ones; a slice holds what any that it is made of holds."""

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        n = len(scan.hu)
        hu, labels, sources = [], [], []
        for number in range(int(np.floor(n / times + 1e-9)) or 1):
            low, high = number * times, min((number + 1) * times, float(n))
            members = tuple(range(int(low), int(np.ceil(high - 1e-9))))
            weights = np.array([min(k + 1, high) - max(k, low) for k in members])
            hu.append(np.tensordot(weights / weights.sum(), scan.hu[list(members)], 1))
            labels.append(scan.labels[members[int(weights.argmax())]])
            sources.append(tuple(i for k in members for i in scan.sources[k]))
        whole = np.stack(hu).astype(np.float32)
        step = scan.slice_mm * times
        return replace(scan, hu=whole, labels=np.stack(labels), sources=tuple(sources), slice_mm=step)

    return change


def thinner(times: int) -> Change:
    """Put `times` as many slices in the same length, interpolated; each is taken for its nearest published one."""

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        n = len(scan.hu)
        at = np.clip((np.arange(n * times) + 0.5) / times - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), max(n - 2, 0))
        share = (at - low)[:, None, None].astype(np.float32)
        hu = scan.hu[low] * (1 - share) + scan.hu[np.minimum(low + 1, n - 1)] * share
        nearest = np.rint(at).astype(int)
        sources = tuple(scan.sources[k] for k in nearest)
        return replace(scan, hu=hu, labels=scan.labels[nearest], sources=sources, slice_mm=scan.slice_mm / times)

    return change


def tilted(angle_deg: float) -> Change:
    """Shear the stack as a gantry tilted about the left-right axis does, and label each slice by its own pixels.

    A slice then holds pixels of several published ones: only where every pixel of all of them is known is its truth.
    """

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        n, rows, _ = scan.hu.shape
        rise = np.tan(np.deg2rad(angle_deg)) * scan.pixel_mm / scan.slice_mm * (np.arange(rows) - (rows - 1) / 2)
        hu, labels, sources = np.empty_like(scan.hu), np.empty_like(scan.labels), []
        for k in range(n):
            at = np.clip(k + rise, 0, n - 1)
            low = np.minimum(at.astype(int), max(n - 2, 0))
            share, row = (at - low)[:, None].astype(np.float32), np.arange(rows)
            hu[k] = scan.hu[low, row] * (1 - share) + scan.hu[np.minimum(low + 1, n - 1), row] * share
            labels[k] = scan.labels[np.rint(at).astype(int), row]
            sources.append(tuple(range(int(at.min()), int(np.ceil(at.max())) + 1)))
        return replace(scan, hu=hu, labels=labels, sources=tuple(sources))

    return change


def opened_skull(scan: Scan, rng: np.random.Generator) -> Scan:
    """Take the bone of one side away, as after a craniectomy: a sector of 70 degrees becomes soft tissue."""
    hu = scan.hu.copy()
    side = 0.0 if rng.random() < 0.5 else np.pi
    for k, plane in enumerate(scan.hu):
        bone = plane > SKULL_HU
        if bone.sum() < 50:
            continue
        rows, columns = np.nonzero(bone)
        center = rows.mean(), columns.mean()
        y, x = np.mgrid[0 : plane.shape[0], 0 : plane.shape[1]]
        angle = np.angle(np.exp(1j * (np.arctan2(y - center[0], x - center[1]) - side)))
        reach = np.hypot(rows - center[0], columns - center[1])
        outer = np.hypot(y - center[0], x - center[1]) > np.quantile(reach, 0.9) * (1 - 2 * SKULL_DEPTH)
        hu[k][bone & outer & (np.abs(angle) < np.deg2rad(35)) & (scan.labels[k] % UNKNOWN == 0)] = SOFT_TISSUE_HU
    return replace(scan, hu=hu)


CORRUPTIONS: tuple[Corruption, ...] = (
    Corruption("window_60", "window width 60, told", told_window(40, 60)),
    Corruption("window_80", "window width 80, told", told_window(40, 80)),
    Corruption("window_60_untold", "window width 60, taken for 120", untold_window(40, 60)),
    Corruption("window_80_untold", "window width 80, taken for 120", untold_window(40, 80)),
    Corruption("window_200_untold", "window width 200, taken for 120", untold_window(40, 200)),
    Corruption("level_50_untold", "window level 50, taken for 40", untold_window(50, 120)),
    Corruption("pixels_larger", "0.6 mm in place of 0.45 mm pixels", of_whole_range(moved(scale=0.75))),
    Corruption(
        "pixels_smaller", "0.35 mm in place of 0.45 mm pixels, cut at the edge", of_whole_range(moved(scale=1.286))
    ),
    Corruption("slices_1_mm", "1 mm slices, interpolated from 5 mm", of_whole_range(thinner(5)), across=True),
    Corruption("slices_7.5_mm", "7.5 mm slices", of_whole_range(thicker(1.5)), across=True),
    Corruption("slices_10_mm", "10 mm slices", of_whole_range(thicker(2)), across=True),
    Corruption("tilt_15", "gantry tilted by 15 degrees", of_whole_range(tilted(15)), mixes=True, across=True),
    Corruption("tilt_-15", "gantry tilted by -15 degrees", of_whole_range(tilted(-15)), mixes=True, across=True),
    Corruption("jpeg_60", "JPEG, quality 60", jpeg(60)),
    Corruption("jpeg_30", "JPEG, quality 30", jpeg(30)),
    Corruption("noise_5", "noise of 5 HU", of_whole_range(noise(5))),
    Corruption("noise_10", "noise of 10 HU", of_whole_range(noise(10))),
    Corruption("blur_1.5", "blurred by 1.5 pixels", of_whole_range(blur(1.5))),
    Corruption("rotated_15", "head turned by 15 degrees", of_whole_range(moved(15))),
    Corruption("rotated_-30", "head turned by -30 degrees", of_whole_range(moved(-30))),
    Corruption("off_center", "head 15 % off center", of_whole_range(moved(shift=(0.12, -0.15)))),
    Corruption("mirrored", "left and right swapped", mirrored),
    Corruption("opened_skull", "bone of one side removed", opened_skull),
)
"""What `benchmarks/robustness.py` measures."""
