"""The containers and codecs that the service accepts: the only list, used by the probe and by the decode child.

The child processes run without a search path and load this file by its path (`runpy`), so it imports nothing from this
package.
"""

CONTAINERS = "MP4, QuickTime, Matroska, WebM, AVI and MPEG-TS"
"""Accepted containers, as error messages name them."""
DEMUXERS = ("mov", "matroska", "avi", "mpegts")
"""FFmpeg's demuxers for these containers."""
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4")
"""Accepted video codecs, by FFmpeg's canonical names."""

_FORMAT_WHITELIST = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts"
_VIDEO_DECODERS = "h264,hevc,vp8,vp9,libvpx,libvpx-vp9,av1,libdav1d,libaom-av1,mpeg4"
_AUDIO_DECODERS = "aac,mp3,mp3float,opus,vorbis,ac3,flac"
"""Sound is never decoded, but FFmpeg opens its decoder to read stream parameters."""


def av_options() -> dict[str, str]:
    """Return FFmpeg options that restrict a file to these containers and decoders and to the `file` protocol."""
    return {
        "format_whitelist": _FORMAT_WHITELIST,
        "protocol_whitelist": "file",
        "codec_whitelist": f"{_VIDEO_DECODERS},{_AUDIO_DECODERS}",
    }
