"""The worker's entry: check what can be checked before anything heavy is loaded, then work. `sharecap worker` is it.

Exits 0 when asked to stop, 1 when the engine has died or Redis is gone (whoever supervises it starts it again), 78
where the settings or the installation cannot work.
"""

import importlib.metadata
import logging
import os
import signal
import sys

from pydantic import ValidationError
from redis.exceptions import RedisError

from service.contract.sandbox.probe import NoSandbox, check_sandbox
from workers.models.engine import CannotWork
from workers.settings import Settings
from workers.xcomposer2.checkpoint import read_config

ENGINE_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TORCH_LOGS": "-torch._library.triton",  # no Triton is normal without a GPU
}
"""What the engine's processes read, where the operator has not said otherwise: a normal start is quiet."""

log = logging.getLogger("sharecap.worker")


def check_decoder() -> None:
    """decord and decord2 install the same module, and only decord2 reads today's files: it must be alone."""
    installed = {(d.metadata["Name"] or "").lower() for d in importlib.metadata.distributions()}
    if "decord" in installed:
        raise CannotWork("decord is installed beside decord2: run `pip uninstall decord`, then reinstall decord2")
    if "decord2" not in installed:
        raise CannotWork("decord2 is not installed")


def check_model(model: str) -> None:
    """Find a mistyped model before the engine is loaded."""
    try:
        read_config(model)
    except (FileNotFoundError, ValueError) as error:
        raise CannotWork(error) from error


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until RQ's handler is there, with jobs to give back
    try:
        settings = Settings()
        check_decoder()
        check_sandbox()
        check_model(settings.model)
        for name, value in ENGINE_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        from workers.models.load import load  # noqa: PLC0415 (imports vLLM, for which the environment must be there)
        from workers.process import work  # noqa: PLC0415

        return work(settings, load)
    except (CannotWork, NoSandbox, ValidationError) as error:
        log.error("%s", error)
        return os.EX_CONFIG
    except RedisError as error:
        log.error("Redis cannot be reached: %s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
