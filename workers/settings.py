"""Settings of a worker, read once from environment variables when the process starts.

Settings that the gateway also has are in `service/contract/settings.py`.
"""

import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from service.contract.settings import SharedSettings
from workers.prompts.choice import PromptSetting

DEMO_CHECKPOINT = Path(__file__).with_name("demo") / "checkpoint"
DEMO_MODEL = "sharecap-demo"
"""The name of the demo model that clients see."""
SLOTS_ON_CPU = 4
SLOTS_ON_GPU = 128
TEXT_FIRST_S_ON_CPU = 2.0
TEXT_FIRST_S_ON_GPU = 0.0
ENGINE_STALL_S_ON_CPU = 900.0
ENGINE_STALL_S_ON_GPU = 60.0
KEY_SEQUENCES_ON_CPU = 8
KEY_SEQUENCES_ON_GPU = 96
FIXED_ENGINE_ARGS = frozenset(
    {
        "additional_config",
        "limit_mm_per_prompt",
        "max_logprobs",
        "model",
        "scheduler_cls",
        "scheduling_policy",
        "trust_remote_code",
    }
)
"""Engine arguments that the worker depends on, so that `ENGINE_ARGS` may not contain them."""


class Settings(SharedSettings):
    """Each setting is read from the environment variable with its name in capitals, such as `SLOTS`."""

    model: str = str(DEMO_CHECKPOINT)
    """Directory or hub id of a checkpoint."""
    prompt_dialect: PromptSetting = "automatic"
    """Style of the prompts. `automatic`: the style that the model family was trained on, else `hierarchical`."""
    slots: Annotated[int, Field(ge=1, le=4096)] | None = None
    """How many videos are captioned at once. None selects 4 on a CPU and 128 on a GPU."""
    chains: Annotated[int, Field(ge=1)] = 16
    """How many shots of one video are captioned at once if its job is `parallel`."""
    drain_s: Annotated[float, Field(ge=0)] = 3.0
    """How long running jobs may continue after SIGTERM before they are given back."""
    decoders: Annotated[int, Field(ge=1)] = (os.cpu_count() or 1) + 1
    """How many videos are decoded at once; by default one more than there are cores, so that one API key can use all
    cores and a decoder is left for the others (`KEY_SHARE`). Each decoder uses up to 2 GiB of memory; a second one
    starts only while 2.25 GiB are available, and each further one needs 256 MiB more."""

    downloads: Annotated[int, Field(ge=1, le=1024)] = 16
    """How many videos are downloaded at once. A download takes no video slot."""
    key_share: Annotated[float, Field(gt=0, le=1)] = 0.75
    """Fraction of this worker's video slots, downloads and decoders that the jobs of one API key may take; at least one
    each."""
    key_sequences: Annotated[int, Field(ge=1)] | None = None
    """How many sequences the engine runs at once for the videos of one API key, and as many for its text jobs. Each
    beam is a sequence. A search with more beams than this still runs, but as the only one of its key. None selects 8 on
    a CPU and 96 on a GPU."""

    fetch_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """Time limit for downloading the video of a URL, including all retries."""
    fetch_min_rate: Annotated[int, Field(ge=0)] = 65_536
    """Bytes per second. A download that is slower for 20 s is aborted. Large files must arrive faster on average, to be
    complete within `fetch_timeout_s`: see `workers/video/fetch.py`. 0 disables both rules."""

    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Further engine arguments of vLLM, as a JSON object: `{"quantization": "fp8_per_tensor"}`. They override those
    that the worker chooses, except the ones in `FIXED_ENGINE_ARGS`."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Fraction of the GPU's memory that the engine may use."""
    max_model_len: Annotated[int, Field(ge=256)] | None = None
    """Limit of prompt and answer tokens together. None selects the checkpoint's."""
    text_first_s: Annotated[float, Field(ge=0)] | None = None
    """How long a turn of a video is held back while short answers (recaptions, clips) are being generated. None selects
    2 s on a CPU, and 0 on a GPU: there, the engine's priorities are enough, and waiting would cost throughput."""
    engine_stall_s: Annotated[float, Field(gt=0)] | None = None
    """An engine that has work, but takes no step for this long, is killed. One step reads up to a few thousand tokens
    of prompts. None selects 900 s on a CPU, where a large model needs minutes for that, and 60 s on a GPU."""
    cpu_kv_cache_gib: Annotated[float, Field(gt=0)] = 1.0
    """Size of the engine's key-value cache on a machine without a GPU."""

    @property
    def public_model(self) -> str:
        """The name of the model that clients see: a hub id, or the name of a checkpoint's directory."""
        if Path(self.model).resolve() == DEMO_CHECKPOINT.resolve():
            return DEMO_MODEL
        return Path(self.model).resolve().name if Path(self.model).is_dir() else self.model

    @field_validator("engine_args")
    @classmethod
    def _only_free_arguments(cls, engine_args: dict[str, Any]) -> dict[str, Any]:
        if fixed := sorted(FIXED_ENGINE_ARGS & engine_args.keys()):
            raise ValueError(f"ENGINE_ARGS must not contain {', '.join(fixed)}")
        return engine_args
