"""How sharp a convolution kernel is, from the names that vendors give (0018,1210).

Brain windows need a smooth kernel; a bone kernel of the same scan drowns blood in noise.
"""

from __future__ import annotations

import re
from enum import IntEnum


class Sharpness(IntEnum):
    """How well a kernel suits the brain; higher is better."""

    SHARP = 0
    UNKNOWN = 1
    SOFT = 2


SHARP_NAMES = re.compile(r"^(BONE|BONEPLUS|EDGE|LUNG|ULTRA|SHARP|D|E|L|Y[A-D])$")
"""GE and Philips."""
SOFT_NAMES = re.compile(r"^(SOFT|STANDARD|STAND|STND|STD|SMOOTH|BRAIN|HEAD|A|B|C|U[A-C])$")
SIEMENS = re.compile(r"^[A-Z][A-Z]?(\d\d)[A-Z]?$")
"""Such as H31s, J45s, Hr38, Hr64: the number grows with sharpness; bone begins at about 50."""
SIEMENS_SHARP = 50
CANON = re.compile(r"^FC(\d\d)$")
CANON_SHARP_TENS = (3, 5, 8)
"""FC3x inner ear and bone, FC5x lung, FC8x bone."""

SHARP_WORDS = re.compile(
    r"(?<![a-z])(bone|bones|boneplus|sharp|edge|lung|knochen|felsenbein|hueso|osseux|osseo|osso|bot|petrous)(?![a-z])"
)
SOFT_WORDS = re.compile(r"(?<![a-z])(brain|soft|standard|std|stnd|cerebral|parenchyma|weichteil|hirn)(?![a-z])")


def kernel_sharpness(kernel: str, description: str) -> Sharpness:
    """Return how sharp a kernel is; the series description decides where the kernel's name says nothing."""
    named = _by_name(kernel)
    if named is not Sharpness.UNKNOWN:
        return named
    text = f"{kernel} {description}".lower()
    if SHARP_WORDS.search(text):
        return Sharpness.SHARP
    return Sharpness.SOFT if SOFT_WORDS.search(text) else Sharpness.UNKNOWN


def _by_name(kernel: str) -> Sharpness:
    words = kernel.upper().split()
    name = words[0].rstrip("+") if words else ""
    if SHARP_NAMES.match(name):
        return Sharpness.SHARP
    if SOFT_NAMES.match(name):
        return Sharpness.SOFT
    if found := CANON.match(name):
        return Sharpness.SHARP if int(found[1]) // 10 in CANON_SHARP_TENS else Sharpness.SOFT
    if found := SIEMENS.match(name):
        return Sharpness.SHARP if int(found[1]) >= SIEMENS_SHARP else Sharpness.SOFT
    return Sharpness.UNKNOWN
