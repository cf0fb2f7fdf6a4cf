"""The Ray Data pipeline: read the input -> caption in actors with one engine each -> write rows.

Ray moves paths and rows; frames stay in the actors. Its checkpoint records which files of rows are complete.
"""

import logging
import os
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig
from sharecap_client.cli.errors import CommandFailed
from sharecap_client.datasets.rows import SCHEMA

from workers.commands.ray_data.actor import RayCaptioner
from workers.commands.ray_data.deaths import Deaths
from workers.commands.ray_data.directory import RunDirectory
from workers.settings import SLOTS_ON_CPU, SLOTS_ON_GPU, Settings

LOCAL = "local"
LOCAL_OBJECT_STORE_BYTES = 256 << 20
"""Size of Ray's object store on this machine: it holds paths and rows only."""

RAY_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Defaults: nothing is reported to Ray's makers, and only what ends a process is logged."""


@dataclass(frozen=True)
class Concurrency:
    """How many clips are where at the same time.

    `clips`: of one task. If an actor dies, its tasks are repeated. `tasks`: of one actor, twice as many clips as it has
    slots, so that videos are fetched before a slot is free. `file_rows`: how many rows are written together; as many
    are lost if the command is killed.
    """

    clips: int
    tasks: int
    file_rows: int

    @classmethod
    def of(cls, settings: Settings, gpus: int) -> "Concurrency":
        clips = 8 if gpus else 1
        slots = settings.slots or (SLOTS_ON_GPU if gpus else SLOTS_ON_CPU)
        return cls(clips=clips, tasks=max(1, 2 * slots // clips), file_rows=32 * gpus or SLOTS_ON_CPU)


def start_ray(address: str, gpus: int) -> None:
    """Connect to the cluster at `address`, or start Ray on this machine. Raises CommandFailed."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    local: dict[str, Any] = {}
    if address == LOCAL:
        cpus = max(2, os.cpu_count() or 1)  # an actor has one, and reading and writing need another
        local = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE_BYTES}
    try:
        ray.init(address, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CommandFailed(f"cannot use the Ray cluster at {address}: {error}") from error
    present = int(ray.cluster_resources().get("GPU", 0))
    if address == LOCAL and present < gpus:
        raise CommandFailed(f"this machine has {present} GPUs: --gpus {present}, or --address of a cluster")


def caption_dataset(directory: RunDirectory, settings: Settings, gpus: int, arguments: dict[str, Any]) -> None:
    """Caption what is in `ray/input` into `ray/rows`. Raises RayError. `arguments`: of `RayCaptioner`."""
    at_once = Concurrency.of(settings, gpus)
    _configure(directory)
    deaths = ray.remote(Deaths).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    present = int(ray.cluster_resources().get("GPU", 0))
    actors = ActorPoolStrategy(
        min_size=max(1, min(gpus, present)),  # others start when the cluster has grown
        max_size=max(1, gpus),
        max_concurrent_calls_per_actor=at_once.tasks,
        max_tasks_in_flight_per_actor=at_once.tasks + 2,
    )
    dataset = ray.data.read_parquet(directory.path("ray", "input"), filesystem=directory.files)
    dataset = dataset.repartition(target_num_rows_per_block=at_once.clips)
    dataset = dataset.map_batches(
        RayCaptioner,
        fn_constructor_kwargs={**arguments, "deaths": deaths},
        batch_size=at_once.clips,
        batch_format="pyarrow",
        compute=actors,
        num_cpus=1,
        num_gpus=min(1, gpus),
    )
    dataset.write_parquet(
        directory.path("ray", "rows"),
        filesystem=directory.files,
        min_rows_per_file=at_once.file_rows,
        schema=SCHEMA,
        compression="zstd",
    )


def _configure(directory: RunDirectory) -> None:
    context = DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="id",
        checkpoint_path=directory.path("ray", "checkpoint"),
        override_filesystem=directory.files,
        delete_checkpoint_on_success=False,  # `RunDirectory.settle` needs it
    )
    context.enable_progress_bars = False  # the command shows its own
    context.print_on_execution_start = False
    for name in ("ray.data", "ray._common.retry"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are raised as well
