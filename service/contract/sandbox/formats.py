"""The containers and codecs that the service accepts: the only list, used by the probe and by the decode child.

The child processes run without a search path and load this file by its path (`runpy`), so it imports nothing from this
package.
"""

CONTAINERS = "MP4, QuickTime, Matroska, WebM, AVI and MPEG-TS"
"""Accepted containers, as error messages name them."""
DEMUXERS = ("mov", "matroska", "avi", "mpegts")
"""FFmpeg's demuxers for these containers."""
CODECS = {
    "h264": ("h264",),
    "hevc": ("hevc",),
    "vp8": ("vp8", "libvpx"),
    "vp9": ("vp9", "libvpx-vp9"),
    "av1": ("av1", "libdav1d", "libaom-av1"),
    "mpeg4": ("mpeg4",),
}
"""Accepted video codecs, by FFmpeg's canonical names, with FFmpeg's decoders for each."""
_AUDIO_DECODERS = ("aac", "mp3", "mp3float", "opus", "vorbis", "ac3", "flac")
"""The probe allows these because FFmpeg opens a decoder to read the parameters of a sound stream."""


def probe_options(demuxer: str) -> dict[str, str]:
    """Return FFmpeg options that restrict a file to `demuxer`, all accepted codecs, and the `file` protocol."""
    return _options(demuxer, (*(name for names in CODECS.values() for name in names), *_AUDIO_DECODERS))


def decode_options(demuxer: str, codec: str) -> dict[str, str]:
    """Return FFmpeg options that restrict a file to the container and the codec that the probe found in it."""
    return _options(demuxer, CODECS[codec])


def _options(demuxer: str, decoders: tuple[str, ...]) -> dict[str, str]:
    return {"format_whitelist": demuxer, "protocol_whitelist": "file", "codec_whitelist": ",".join(decoders)}
