"""Tone mapping: HDR pixels (PQ or HLG) and wide-gamut pixels to those of a BT.709 display. Loaded by its path.

The steps: code values to light in nits (SMPTE ST 2084, or ITU-R BT.2100 HLG for a display of 1000 nits); highlights are
compressed with the curve of ITU-R BT.2390 (EETF), applied to the largest of the three components, so that hues do not
change; BT.2020 or P3 primaries to BT.709; light to code values for a display with a gamma of 2.4 (ITU-R BT.1886).
White of SDR is the reference white of HDR, 203 nits (ITU-R BT.2408). Matrices are applied without BLAS, which would
make system calls that the sandbox refuses.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
PQ, HLG = 16, 18
"""Transfer functions, as FFmpeg numbers them (ITU-T H.273)."""
BT2020, P3_D65 = 9, 12
"""Primaries, likewise."""
WHITE_NITS = 203.0
DEFAULT_PEAK_NITS, HIGHEST_PEAK_NITS, PQ_PEAK_NITS = 1000.0, 10_000.0, 10_000.0
GAMMA = 2.4
TO_BT709 = {
    BT2020: ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
    P3_D65: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),
}
"""Matrices of linear light (ITU-R BT.2087; P3 by the same derivation)."""
BT2020_LUMINANCE = np.array((0.2627, 0.6780, 0.0593), np.float32)
STEPS = 4096

# SMPTE ST 2084
M1, M2 = 2610 / 16384, 2523 / 4096 * 128
C1, C2, C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
# ARIB STD-B67
A, B, C = 0.17883277, 0.28466892, 0.55991073
HLG_SYSTEM_GAMMA = 1.2


def needs_mapping(transfer: int, primaries: int) -> bool:
    """Return whether a frame with these properties differs visibly from BT.709."""
    return transfer in (PQ, HLG) or primaries in TO_BT709


def to_sdr(pixels: npt.NDArray[np.uint16], transfer: int, primaries: int, peak_nits: float) -> npt.NDArray[np.uint8]:
    """Return the pixels for a BT.709 display. Both are RGB [height, width, 3]; `peak_nits` is the brightest content."""
    if transfer in (PQ, HLG):
        light = _pq_light()[pixels] if transfer == PQ else _hlg_light(pixels)
        brightest = light.max(axis=2)
        position = np.log2(1 + brightest) * ((STEPS - 1) / np.log2(1 + PQ_PEAK_NITS))
        light *= _compression(min(max(peak_nits, WHITE_NITS), HIGHEST_PEAK_NITS))[position.astype(np.uint16)][..., None]
        light /= np.float32(WHITE_NITS)
    else:
        light = _sdr_light()[pixels]
    if primaries in TO_BT709:
        light = np.einsum("yxc,dc->yxd", light, np.array(TO_BT709[primaries], np.float32))
    levels = (np.clip(light, 0, 1) * np.float32(65535) + np.float32(0.5)).astype(np.uint16)
    return _display_codes()[levels]


def pq_nits(codes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the light of PQ code values from 0 to 1 (the EOTF of ST 2084)."""
    power = np.power(codes, 1 / M2)
    nits: npt.NDArray[np.float64] = PQ_PEAK_NITS * np.power(np.maximum(power - C1, 0) / (C2 - C3 * power), 1 / M1)
    return nits


def pq_codes(nits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the PQ code values, from 0 to 1, of light in nits."""
    power = np.power(np.asarray(nits) / PQ_PEAK_NITS, M1)
    codes: npt.NDArray[np.float64] = np.power((C1 + C2 * power) / (1 + C3 * power), M2)
    return codes


def compressed_nits(nits: npt.NDArray[np.float64], peak_nits: float) -> npt.NDArray[np.float64]:
    """Return light of up to `peak_nits` compressed to at most WHITE_NITS (EETF of BT.2390, black unchanged)."""
    source_peak, target_peak = pq_codes(np.array([peak_nits, WHITE_NITS]))
    codes = np.minimum(pq_codes(nits) / source_peak, 1)
    highest = target_peak / source_peak
    knee = 1.5 * highest - 0.5
    if knee >= 1:
        return np.minimum(nits, WHITE_NITS)
    t = np.clip((codes - knee) / (1 - knee), 0, 1)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * highest
    return pq_nits(np.where(codes < knee, codes, spline) * source_peak)


@cache
def _pq_light() -> Floats:
    return pq_nits(np.linspace(0, 1, 65536)).astype(np.float32)


@cache
def _sdr_light() -> Floats:
    return np.power(np.linspace(0, 1, 65536), GAMMA).astype(np.float32)


def _hlg_light(pixels: npt.NDArray[np.uint16]) -> Floats:
    """Return the light on a display of 1000 nits, in nits."""
    scene = _hlg_scene()[pixels]
    luminance = np.maximum(np.einsum("yxc,c->yx", scene, BT2020_LUMINANCE), np.float32(1e-6))
    light: Floats = scene * (np.float32(DEFAULT_PEAK_NITS) * luminance ** np.float32(HLG_SYSTEM_GAMMA - 1))[..., None]
    return light


@cache
def _hlg_scene() -> Floats:
    """Return scene light from 0 to 1 by code value (the inverse OETF)."""
    codes = np.linspace(0, 1, 65536)
    light: npt.NDArray[np.float64] = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - C) / A) + B) / 12)
    return light.astype(np.float32)


@cache
def _compression(peak_nits: float) -> Floats:
    """Return the factor on light, by the logarithm of its brightest component."""
    nits = np.exp2(np.linspace(0, np.log2(1 + PQ_PEAK_NITS), STEPS)) - 1
    nits[0] = 1e-4
    factors: Floats = (compressed_nits(nits, peak_nits) / nits).astype(np.float32)
    return factors


@cache
def _display_codes() -> npt.NDArray[np.uint8]:
    codes = np.power(np.linspace(0, 1, 65536, dtype=np.float64), 1 / GAMMA) * 255
    rounded: npt.NDArray[np.uint8] = np.rint(codes).astype(np.uint8)
    return rounded
