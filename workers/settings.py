"""What an operator may set for a worker, read once from the environment at the process's start.

Names that the gateway has too mean the same there.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from service.contract.settings import SharedSettings

DEMO_CHECKPOINT = Path(__file__).with_name("demo") / "checkpoint"
SLOTS_ON_CPU = 4
SLOTS_ON_GPU = 128


class Settings(SharedSettings):
    """Every name is an environment variable, in capitals: `SLOTS=…`."""

    model: str = str(DEMO_CHECKPOINT)
    """A checkpoint's directory or hub id."""
    prompt_dialect: Literal["automatic", "xcomposer2", "hierarchical"] = "automatic"
    """How the model is asked; automatic: as it was trained to be, where it is of the ShareCaptioner-Video family."""
    slots: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Videos in work at once; none is 4 on a CPU and 128 on a GPU."""
    chains: Annotated[int, Field(ge=1)] = 16
    """Shots of one video captioned at once, where its job asks for that."""
    drain_s: Annotated[float, Field(ge=0)] = 3.0
    """How long jobs in work may go on after SIGTERM before they are given back."""
    decoders: Annotated[int, Field(ge=1)] = os.cpu_count() or 1
    """Videos decoded at once; each takes up to 2 GiB."""

    fetch_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """How long the file behind a URL may take to come, all tries together."""
    fetch_min_rate: Annotated[int, Field(ge=0)] = 65_536
    """Bytes a second: an address that gives less is left."""

    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """The engine's share of the GPU's memory."""
    max_model_len: Annotated[int, Field(ge=256)] | None = None
    """Tokens of prompt and answer together; none is the checkpoint's."""
    cpu_kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    """Memory of the engine's key-value cache where there is no GPU."""
