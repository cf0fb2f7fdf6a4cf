"""The containers and codecs that the service accepts: the only list, used by the probe and by the decode child.

Names are FFmpeg's: of its demuxers and of its codecs. The settings `FORMATS` and `CODECS` narrow the list. The child
processes run without a search path and load this file by its path (`runpy`), so it imports nothing from this package.
"""

from collections.abc import Iterable
from fractions import Fraction

FORMATS = {
    "mov": "MP4, QuickTime and 3GP",
    "matroska": "Matroska and WebM",
    "avi": "AVI",
    "mpegts": "MPEG-TS",
    "mpeg": "MPEG-PS",
    "flv": "Flash video",
    "asf": "ASF (WMV)",
    "ogg": "Ogg",
    "gif": "GIF",
    "apng": "animated PNG",
    "webp": "animated WebP",
    "h264": "raw H.264",
    "hevc": "raw H.265",
}
"""Accepted containers: FFmpeg's demuxer, and the name in error messages. Pillow reads animated WebP."""

CODECS = {
    "h264": ("h264",),
    "hevc": ("hevc",),
    "vp8": ("vp8", "libvpx"),
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("av1", "libdav1d", "libaom-av1"),
    "mpeg4": ("mpeg4",),
    "mpeg1video": ("mpeg1video",),
    "mpeg2video": ("mpeg2video",),
    "msmpeg4v2": ("msmpeg4v2",),
    "msmpeg4v3": ("msmpeg4",),
    "h263": ("h263",),
    "flv1": ("flv",),
    "vp6": ("vp6",),
    "vp6f": ("vp6f",),
    "vp6a": ("vp6a",),
    "wmv1": ("wmv1",),
    "wmv2": ("wmv2",),
    "wmv3": ("wmv3",),
    "vc1": ("vc1",),
    "theora": ("theora",),
    "mjpeg": ("mjpeg",),
    "prores": ("prores",),
    "dnxhd": ("dnxhd",),
    "ffv1": ("ffv1",),
    "gif": ("gif",),
    "apng": ("apng",),
    "webp": (),
}
"""Accepted video codecs, with FFmpeg's decoders for each. FFmpeg has none for animated WebP."""

EXCLUDED_FORMATS = {
    "MXF": "its demuxer reads dozens of broadcast variants, and no public data set uses it",
    "RealMedia": "its codecs are obsolete, and their decoders are rarely maintained",
    "DV": "every file is a tape recording of 13 GB an hour; archives publish it as MPEG or MP4",
    "PNG": "it is a still picture; animated PNG is accepted",
    "WebP": "it is a still picture; animated WebP is accepted",
    "JPEG": "it is a still picture, and a raw sequence of JPEG files states no times",
    "YUV4MPEG": "uncompressed video exceeds the upload limit within seconds",
    "IVF": "it is a format of test streams; the same codecs are accepted in WebM and MP4",
    "NUT": "only FFmpeg writes it",
    "SWF": "it is a program that draws; Flash video (FLV) is accepted",
    "WTV": "only Windows Media Center wrote it, and no public data set uses it",
    "raw MPEG-1, MPEG-2 or MPEG-4": "no public data set uses it; its codecs are accepted in MPEG-PS, MPEG-TS and MP4",
    "raw AV1": "no public data set uses it; AV1 is accepted in WebM and MP4",
    "AVIF or HEIF": "it is a picture format, and its animations are rare",
}
"""Known containers that are refused, each with the reason."""

EXCLUDED_CODECS = {
    "rawvideo": "uncompressed video exceeds the upload limit within seconds",
    "huffyuv": "it serves intermediate files only; FFV1 is accepted for lossless video",
    "magicyuv": "it serves intermediate files only; FFV1 is accepted for lossless video",
    "utvideo": "it serves intermediate files only; FFV1 is accepted for lossless video",
    "qtrle": "it is obsolete, and its decoder is rarely maintained",
    "cinepak": "it is obsolete, and its decoder is rarely maintained",
    "indeo3": "it is obsolete, and its decoder is rarely maintained",
    "svq3": "it is obsolete, and its decoder is rarely maintained",
    "rv40": "it is obsolete, and its decoder is rarely maintained",
    "msmpeg4v1": "it is obsolete, and no public data set uses it",
    "dvvideo": "it occurs in tape recordings only; archives publish them as MPEG or MP4",
    "cfhd": "it is a camera's intermediate format; ProRes and DNxHD are accepted",
    "jpeg2000": "it serves cinema and archive masters, which are published as H.264",
    "vvc": "no public data set uses it yet",
}
"""Known video codecs that are refused, each with the reason. Every codec that is on no list is refused as well."""

ONLY_DECODING_TIMES = frozenset({"avi", "asf", "matroska"})
"""Containers whose packets may have a time for decoding only. Their first frame is shown at the first of these."""
READ_IN_ORDER = frozenset({"mpeg", "h264", "hevc", "gif", "apng", "webp"})
"""Containers that do not state the time of every frame, or whose frames build on all earlier ones."""
WITHOUT_TIMES = frozenset({"h264", "hevc"})
"""Containers that state no times at all; their frames are shown at the codec's constant rate."""
BROADCAST = frozenset({"mpegts", "mpeg"})
"""Containers in which a damaged packet is decoded as far as possible. In others it is the cut end of the file."""
REORDERING_CODECS = frozenset({"h264", "hevc", "mpeg4", "mpeg1video", "mpeg2video", "vc1", "wmv3", "av1"})
"""Codecs that may store frames in another order than they are shown in."""

HIGHEST_RATE = 1000
"""Frames per second. A file that states a higher rate states that of a clock, and its frames are fewer."""

_AUDIO_DECODERS = ("aac", "mp3", "mp3float", "opus", "vorbis", "ac3", "flac")
"""The probe allows these because FFmpeg opens a decoder to read the parameters of a sound stream."""


def named(formats: Iterable[str]) -> str:
    """Return the containers as error messages list them."""
    return ", ".join(label for name, label in FORMATS.items() if name in formats)


def probe_options(demuxer: str, codecs: Iterable[str]) -> dict[str, str]:
    """Return FFmpeg options that restrict a file to `demuxer`, the decoders of `codecs`, and the `file` protocol."""
    return _options(demuxer, (*(name for codec in codecs for name in CODECS[codec]), *_AUDIO_DECODERS))


def decode_options(demuxer: str, codec: str) -> dict[str, str]:
    """Return FFmpeg options that restrict a file to the container and the codec that the probe found in it."""
    return _options(demuxer, CODECS[codec])


def _options(demuxer: str, decoders: tuple[str, ...]) -> dict[str, str]:
    return {"format_whitelist": demuxer, "protocol_whitelist": "file", "codec_whitelist": ",".join(decoders)}


def frame_rate(*stated: Fraction | None) -> Fraction | None:
    """Return the first of the stated rates that can be one of frames."""
    return next((rate for rate in stated if rate is not None and 0 < rate <= HIGHEST_RATE), None)


def times_are_stored(demuxer: str, codec: str) -> bool:
    """Return whether the packets can state when each frame is shown. If not, only decoding shows it."""
    if demuxer in ("avi", "asf"):
        return codec not in REORDERING_CODECS
    return demuxer not in READ_IN_ORDER
