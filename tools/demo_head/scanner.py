"""A CT scanner: one slice of Hounsfield units in, the image that a scanner would have made of it out.

Parallel rays through water and bone at several photon energies give beam hardening; counting photons gives noise
whose grain and streaks come from the reconstruction, as in a real scan (Kak and Slaney, Principles of Computerized
Tomographic Imaging, 1988, chapters 3 and 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from demo_head.fields import Field

ENERGIES_KEV = (45, 55, 70, 90, 110)
PHOTON_SHARE = np.array([0.12, 0.24, 0.32, 0.21, 0.11])
"""A filtered 120 kV spectrum, in five bins."""
WATER_PER_MM = np.array([0.02449, 0.02152, 0.01929, 0.01764, 0.01654])
BONE_PER_MM = np.array([0.0998, 0.0687, 0.0501, 0.0388, 0.0336])
"""Linear attenuation of water and of cortical bone of 1.92 g/cm3 (NIST XCOM, interpolated)."""
REFERENCE = 2
"""The energy whose attenuation the image shows."""
BONE_HU = 1000.0 * (BONE_PER_MM[REFERENCE] / WATER_PER_MM[REFERENCE] - 1.0)
SOFT_LIMIT_HU = 110.0


@dataclass(frozen=True)
class Scanner:
    """Settings of the scan."""

    pixel_mm: float = 0.46875
    size: int = 512
    views: int = 540
    photons: float = 1.8e6
    """Per ray, before the head."""
    hardening: float = 0.55
    """Share of bone's beam hardening that the scanner's own correction leaves."""
    cutoff: float = 0.74
    """Of the Nyquist frequency: where the kernel reaches zero."""

    @property
    def angles(self) -> Field:
        """Directions of the rays, radians."""
        return np.arange(self.views, dtype=np.float32) * np.float32(np.pi / self.views)


def scan(scanner: Scanner, hu: Field, rng: np.random.Generator) -> Field:
    """Return the reconstructed HU of one slice, ``(size, size)`` float32."""
    bone = np.clip((hu - SOFT_LIMIT_HU) / (BONE_HU - SOFT_LIMIT_HU), 0.0, None)
    water = np.maximum(1.0 + np.minimum(hu, SOFT_LIMIT_HU) / 1000.0, 0.0) * np.clip(1.0 - bone, 0.0, 1.0)
    lengths = project(scanner, (water + 1j * bone).astype(np.complex64)) * np.float32(scanner.pixel_mm)
    measured = _counted(scanner, lengths.real, lengths.imag, rng)
    return 1000.0 * (_backproject(scanner, _filtered(scanner, measured)) / np.float32(WATER_PER_MM[REFERENCE]) - 1.0)


def project(scanner: Scanner, image: np.ndarray) -> np.ndarray:
    """Return line integrals, ``(views, size)`` in pixels, by Joseph's method (IEEE TMI 1982;1:192)."""
    n = scanner.size
    center = (n - 1) / 2
    offsets = (np.arange(n) - center).astype(np.float32)
    sinogram = np.empty((scanner.views, n), image.dtype)
    padded = {flip: np.pad(image.T if flip else image, ((0, 0), (1, 1))).ravel() for flip in (False, True)}
    starts = (np.arange(n) * (n + 2))[:, None]
    for i, angle in enumerate(scanner.angles):
        cos, sin = np.cos(angle), np.sin(angle)
        flip = abs(cos) < abs(sin)
        main, other = (sin, cos) if flip else (cos, sin)
        # The ray at distance t crosses line k where main * u + other * k = t.
        u = (offsets[None, :] - other * offsets[:, None]) / main + np.float32(center + 1)
        u = np.clip(u, 0, n + 0.999)
        low = u.astype(np.int32)
        share = u - low
        index = low + starts
        flat = padded[flip]
        sinogram[i] = (flat[index] * (1 - share) + flat[index + 1] * share).sum(axis=0) / abs(main)
    return sinogram


def _counted(scanner: Scanner, water: Field, bone: Field, rng: np.random.Generator) -> Field:
    """Return the water-corrected projection that counted photons give."""
    ratio = BONE_PER_MM / BONE_PER_MM[REFERENCE]
    as_water = WATER_PER_MM / WATER_PER_MM[REFERENCE]
    bone_per_mm = BONE_PER_MM[REFERENCE] * (as_water + scanner.hardening * (ratio - as_water))
    seen = np.zeros(water.shape, np.float64)
    for share, of_water, of_bone in zip(PHOTON_SHARE, WATER_PER_MM, bone_per_mm, strict=True):
        seen += share * np.exp(-of_water * water - of_bone * bone)
    noise = rng.standard_normal(seen.shape) / np.sqrt(scanner.photons * seen)
    depth = np.linspace(0.0, 600.0, 1200)
    hardened = -np.log(PHOTON_SHARE @ np.exp(-WATER_PER_MM[:, None] * depth))
    return np.float32(np.interp(-np.log(seen), hardened, depth * WATER_PER_MM[REFERENCE]) + noise)


def _filtered(scanner: Scanner, sinogram: Field) -> Field:
    """Apply the ramp, rounded off toward `cutoff` as a standard head kernel is."""
    n = 2 * scanner.size
    taps = np.zeros(n)
    taps[0] = 0.25
    odd = np.arange(1, scanner.size, 2)
    taps[odd] = taps[-odd] = -1.0 / (np.pi * odd) ** 2
    frequency = np.fft.rfftfreq(n) * 2.0 / scanner.cutoff
    window = np.where(frequency < 1.0, np.cos(np.pi / 2 * np.minimum(frequency, 1.0)) ** 1.2, 0.0)
    kernel = np.fft.rfft(taps).real * window
    out = np.fft.irfft(np.fft.rfft(sinogram, n, axis=1) * kernel, n, axis=1)[:, : scanner.size]
    return np.float32(out / scanner.pixel_mm)


def _backproject(scanner: Scanner, sinogram: Field) -> Field:
    n = scanner.size
    offsets = (np.arange(n) - (n - 1) / 2).astype(np.float32)
    image = np.zeros((n, n), np.float32)
    for row, angle in zip(sinogram, scanner.angles, strict=True):
        t = np.float32(np.cos(angle)) * offsets[None, :] + np.float32(np.sin(angle)) * offsets[:, None]
        t = np.clip(t + np.float32((n - 1) / 2), 0, n - 1.001)
        low = t.astype(np.int32)
        rise = np.append(np.diff(row), np.float32(0))
        image += row[low] + rise[low] * (t - low)
    return image * np.float32(np.pi / scanner.views)
