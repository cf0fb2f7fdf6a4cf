"""Entry point of the worker (`sharecap worker`): checks settings and installation, then loads the models and runs.

Exit status: 0 after a stop signal, 1 if the engine died or Redis is unreachable (a supervisor should restart the
worker), 78 if the settings or the installation are wrong.
"""

import logging
import os
import signal
import sys

from pydantic import ValidationError
from redis.exceptions import RedisError

from service.contract.sandbox.probe import NoSandbox, check_sandbox
from service.contract.storage.private import keep_files_private
from workers.models.engine import CannotWork
from workers.parent_death import set_up_spawned_child, set_up_worker
from workers.settings import Settings
from workers.xcomposer2.checkpoint import read_config

ENGINE_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCH_LOGS": "-torch._library.triton",  # Triton is absent on machines without a GPU
    "GOMP_SPINCOUNT": "1000",
}
"""Defaults for the environment of this process and the engine's.

A normal start logs nothing but our own lines. GOMP_SPINCOUNT: threads that compute on the CPU soon sleep when they wait
for each other. By default they wait busily for milliseconds, and take the cores from decoders and from each other.
"""

log = logging.getLogger("sharecap.worker")


def check_model(model: str) -> None:
    """Raise CannotWork if the model does not exist, before the engine is loaded."""
    try:
        read_config(model)
    except (FileNotFoundError, ValueError) as error:
        raise CannotWork(error) from error


def main() -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    log.setLevel(logging.INFO)
    keep_files_private()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until RQ installs its own handler
    set_up_worker()
    try:
        settings = Settings()
        check_sandbox()
        check_model(settings.model)
        for name, value in ENGINE_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        from workers.models.load import load  # noqa: PLC0415 (imports vLLM, which reads the environment)
        from workers.process import work  # noqa: PLC0415

        return work(settings, load)
    except (CannotWork, NoSandbox, ValidationError) as error:
        log.error("%s", error)
        return os.EX_CONFIG
    except RedisError as error:
        log.error("cannot reach Redis: %s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":  # a process that vLLM has spawned imports this module first
    set_up_spawned_child()
