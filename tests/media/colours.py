"""Pictures in the colour systems of videos, computed from the standards' formulas and not with FFmpeg.

An input picture is sRGB, float [height, width, 3] from 0 to 1. The results are planar YUV 4:4:4, uint16
[3, height, width].
"""

from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
LUMA = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}
"""Weights of red and blue in luma."""
BT709_TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""ITU-R BT.2087, for linear light."""
SDR_WHITE_NITS = 203
"""ITU-R BT.2408: the luminance of SDR white, and of the white of a page, in an HDR picture."""
HLG_PEAK_NITS, HLG_GAMMA = 1000, 1.2


def yuv(rgb: Floats, matrix: str, *, bits: int = 8, full_range: bool = False) -> npt.NDArray[np.uint16]:
    """Return YUV of non-linear RGB."""
    red, blue = LUMA[matrix]
    luma = rgb @ np.array([red, 1 - red - blue, blue])
    chroma = [(rgb[..., 2] - luma) / (2 - 2 * blue), (rgb[..., 0] - luma) / (2 - 2 * red)]
    if full_range:
        peak = (1 << bits) - 1
        levels = [luma * peak, *(plane * peak + (1 << bits - 1) for plane in chroma)]
    else:
        step = 1 << bits - 8
        levels = [(luma * 219 + 16) * step, *((plane * 224 + 128) * step for plane in chroma)]
    return np.rint(np.clip(levels, 0, (1 << bits) - 1)).astype(np.uint16)


def nits(srgb: Floats) -> Floats:
    """Return linear light in BT.2020 primaries, with sRGB white at the luminance of SDR white."""
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    light: Floats = linear @ BT709_TO_BT2020.T * SDR_WHITE_NITS
    return light


def pq(light: Floats) -> Floats:
    """Return the signal of SMPTE ST 2084 for linear light in nits."""
    power = (light / 10_000) ** 0.1593017578125
    signal: Floats = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    return signal


def hlg(light: Floats) -> Floats:
    """Return the signal of ARIB STD-B67 for the linear light that a display of 1000 nits shows."""
    luminance = light @ np.array([0.2627, 0.6780, 0.0593]) / HLG_PEAK_NITS
    gain = np.maximum(luminance, 1e-9) ** ((1 - HLG_GAMMA) / HLG_GAMMA)
    scene = light / HLG_PEAK_NITS * gain[..., None]
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


def frame(planes: npt.NDArray[np.uint16], pix_fmt: str) -> av.VideoFrame:
    """Return a frame with these samples. `pix_fmt` is yuv444p or yuv444p10le."""
    dtype = np.uint8 if pix_fmt == "yuv444p" else np.uint16
    made = av.VideoFrame(planes.shape[2], planes.shape[1], pix_fmt)
    for plane, levels in zip(made.planes, planes, strict=True):
        rows = np.zeros((plane.height, plane.line_size // np.dtype(dtype).itemsize), dtype)
        rows[:, : plane.width] = levels
        plane.update(rows.tobytes())
    made.time_base = Fraction(1, 25)
    return made
