"""Checks what a process needs before it starts, so that a wrong name or a missing server is reported at once."""

from pathlib import Path

from redis.exceptions import RedisError
from sharecap_client.cli.errors import CommandFailed

from service.contract.model_hub import ModelUnavailable, check_hub, is_hub_id
from service.contract.settings import RedisSettings, configured_redis_url
from service.contract.store.connection import connect

REDIS_TIMEOUT_S = 5.0
REDIS_REMEDY = (
    "Start it, or name another one with --redis-url or REDIS_URL; without them, `sharecap up` starts its own server"
)


class CannotStart(CommandFailed):
    """The service cannot start on this machine. The text says why, and what to do about it."""


def check_model(model: str | None) -> dict[str, str]:
    """Return environment variables that the worker needs to load the model. None stands for the demo model.

    Raises CannotStart if there cannot be such a model, or if it has to be downloaded and the hub cannot be reached.
    """
    if model is None or Path(model, "config.json").is_file():
        return {}
    if not is_hub_id(model):
        raise CannotStart(
            f"no model in {model}: --model takes a directory with a config.json, or a hub id (owner/name)"
        )
    try:
        return check_hub(model)
    except ModelUnavailable as error:
        raise CannotStart(str(error)) from None


async def check_redis(redis_url: str | None) -> None:
    """Raise CannotStart if the server does not answer. None stands for the setting, which has a default."""
    given = redis_url or configured_redis_url()
    name = "the server of REDIS_URL" if given else "the Redis server"
    if problem := await redis_problem(given or RedisSettings().redis_url):
        raise CannotStart(f"{name} does not answer: {problem.rstrip('.')}. {REDIS_REMEDY}")


async def redis_problem(redis_url: str) -> str | None:
    """Return why the server does not answer, None if it does."""
    try:
        async with connect(redis_url, socket_connect_timeout=REDIS_TIMEOUT_S, socket_timeout=REDIS_TIMEOUT_S) as redis:
            await redis.ping()
    except (RedisError, OSError, ValueError) as error:
        return str(error)
    return None
