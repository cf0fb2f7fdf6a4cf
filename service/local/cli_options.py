"""Options and defaults that several of the server commands share."""

from pathlib import Path
from typing import Annotated

import typer

from service.settings import Settings

DEFAULT_DATA_DIR: Path = Settings.model_fields["data_dir"].default
DEFAULT_HOST: str = Settings.model_fields["host"].default
DEFAULT_PORT: int = Settings.model_fields["port"].default

DataDir = Annotated[
    Path, typer.Option(envvar="DATA_DIR", help="Directory for videos, keyframes and logs; without REDIS_URL also jobs.")
]
Port = Annotated[int, typer.Option(envvar="PORT", min=1, max=65535, help="TCP port of the service.")]
DEFAULT_REDIS_URL: str = Settings.model_fields["redis_url"].default

RedisUrl = Annotated[
    str | None,
    typer.Option(envvar="REDIS_URL", help=f"URL of the Redis or Valkey server. Default: {DEFAULT_REDIS_URL}."),
]
EmbeddedOrRedisUrl = Annotated[
    str | None,
    typer.Option(envvar="REDIS_URL", help="URL of a Redis or Valkey server. Default: the data directory's own."),
]
Model = Annotated[
    str | None,
    typer.Option(envvar="MODEL", help="Checkpoint directory or hub id. Default: the demo model."),
]
