"""Settings that the gateway and the workers both read, declared once.

Both processes subclass `SharedSettings`. A setting declared here has the same name and default in both; the operator
must give both processes the same value.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.contract.outbound.ssrf import Hosts
from service.contract.sandbox.probe import VideoLimits

GIB = 1 << 30


class SharedSettings(BaseSettings):
    """Each field is read from the environment variable of the same name in capitals: `MAX_UPLOAD_BYTES=…`."""

    model_config = SettingsConfigDict(frozen=True)

    redis_url: str = "redis://127.0.0.1:6379/0"
    data_dir: Path = Path("data")
    """Directory of uploads and keyframes; the gateway and the workers must see the same directory."""

    max_upload_bytes: Annotated[int, Field(gt=0)] = 4 * GIB
    """Maximum size of a video file, uploaded or fetched from a URL."""
    max_duration_s: Annotated[float, Field(gt=0)] = VideoLimits.max_duration_s
    max_pixels: Annotated[int, Field(gt=0)] = VideoLimits.max_pixels
    """Maximum width times height of a frame."""
    probe_timeout_s: Annotated[float, Field(gt=0)] = VideoLimits.wall_s
    max_keyframes: Annotated[int, Field(ge=1, le=100_000)] = 2000
    """Upper bound of the option `max_keyframes`, and its default."""
    min_free_bytes: Annotated[int, Field(ge=0)] = GIB
    """A video is refused if storing it would leave less free space than this on the disk of `data_dir`."""
    allowed_hosts: Hosts = frozenset()
    """`host[:port],…`: these hosts may be fetched even if their address is private or their port is not 80 or 443."""

    @property
    def video_limits(self) -> VideoLimits:
        return VideoLimits(self.max_pixels, self.max_duration_s, self.probe_timeout_s)
