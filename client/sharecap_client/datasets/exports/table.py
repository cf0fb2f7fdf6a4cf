"""The formats of `sharecap export`, by trainer. A new trainer is a row of this table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.exports import records
from sharecap_client.datasets.exports.shards import webdataset_shards
from sharecap_client.datasets.exports.target import Target
from sharecap_client.datasets.exports.writers import (
    Writer,
    aligned_lines,
    captions_beside,
    captions_json,
    csv_table,
    json_lines,
    json_list,
    parquet_table,
    rendered,
)

SIZE = ("width", "height")
MOTION = ("fps", "frames")


@dataclass(frozen=True)
class Format:
    """How one kind of files is written.

    `folder`: where the videos lie in the export. `flat`: the trainer does not look into subfolders. `needs`: a row that
    lacks one of these fields is left out. `suffix`: the trainer ignores other videos. `videos`: whether the export has
    the videos as files, inside of its own files, or not at all.
    """

    write: Writer
    folder: str = ""
    flat: bool = False
    needs: tuple[str, ...] = ()
    suffix: str | None = None
    videos: Literal["files", "inside", "none"] = "files"


def merge_list(name: str, folder: str, listing: str) -> Callable[[Target], None]:
    """Return a function that writes the line `folder,listing` which names a data set.

    The trainers split it at commas, so it raises StoreError if the path contains one.
    """

    def write(target: Target) -> None:
        if "," in str(target.final):
            raise StoreError(f"{target.final}: this trainer cannot read a path with a comma: choose another one")
        target.put(name, f"{target.final / folder},{target.final / listing}\n")

    return write


BESIDE = Format(captions_beside())
BESIDE_FLAT = Format(captions_beside(), flat=True)
ALIGNED = Format(aligned_lines("prompts.txt", "videos.txt", "videos/"), folder="videos/")
VIDEOX_FUN = Format(json_list("metadata.json", records.videox_fun), needs=SIZE)

FORMATS: dict[str, dict[str, Format]] = {
    "musubi": {"txt": BESIDE_FLAT, "jsonl": Format(json_lines("metadata.jsonl", records.musubi))},
    "diffusion-pipe": {"txt": BESIDE_FLAT, "json": Format(captions_json, flat=True)},
    "ai-toolkit": {"txt": BESIDE_FLAT},
    "simpletuner": {
        "txt": BESIDE,
        "parquet": Format(
            parquet_table("metadata.parquet", records.simpletuner, records.SIMPLETUNER_TYPES), needs=(*SIZE, *MOTION)
        ),
        "jsonl": Format(json_lines("metadata.jsonl", records.simpletuner), needs=(*SIZE, *MOTION)),
    },
    "onetrainer": {"txt": BESIDE_FLAT},
    "finetrainers": {"txt": ALIGNED},
    "cogvideo": {"txt": ALIGNED},
    "diffsynth": {
        "csv": Format(csv_table("metadata.csv", records.diffsynth)),
        "jsonl": Format(json_lines("metadata.jsonl", records.diffsynth)),
    },
    "videox-fun": {"json": VIDEOX_FUN},
    "easyanimate": {"json": VIDEOX_FUN},
    "fastvideo": {
        "json": Format(
            json_list(
                "videos2caption.json", records.fastvideo, merge_list("merge.txt", "videos", "videos2caption.json")
            ),
            folder="videos/",
            needs=(*SIZE, *MOTION, "duration_s"),
            suffix=".mp4",
        )
    },
    "open-sora": {
        "csv": Format(csv_table("metadata.csv", records.open_sora), needs=(*SIZE, *MOTION)),
        "parquet": Format(
            parquet_table("metadata.parquet", records.open_sora, records.OPEN_SORA_TYPES), needs=(*SIZE, *MOTION)
        ),
    },
    "open-sora-plan": {
        "json": Format(
            json_list("metadata.json", records.open_sora_plan, merge_list("data.txt", "", "metadata.json")),
            needs=(*SIZE, *MOTION),
            suffix=".mp4",
        )
    },
    "ltx": {
        "jsonl": Format(json_lines("metadata.jsonl", records.ltx)),
        "csv": Format(csv_table("metadata.csv", records.ltx)),
        "json": Format(json_list("metadata.json", records.ltx)),
    },
    "cosmos-predict": {"txt": Format(captions_beside("metas/"), folder="videos/", flat=True, suffix=".mp4")},
    "sharegpt4video": {"jsonl": Format(json_lines("captions.jsonl", records.sharegpt4video))},
    "videofolder": {
        "csv": Format(csv_table("metadata.csv", records.videofolder)),
        "jsonl": Format(json_lines("metadata.jsonl", records.videofolder)),
        "parquet": Format(parquet_table("metadata.parquet", records.videofolder, records.VIDEOFOLDER_TYPES)),
    },
    "webdataset": {"tar": Format(webdataset_shards, videos="inside")},
    "srt": {"srt": Format(rendered("srt"), videos="none")},
    "vtt": {"vtt": Format(rendered("vtt"), videos="none")},
    "markdown": {"md": Format(rendered("md"), videos="none")},
}
"""Trainer -> kind of files -> format. The first kind is the default."""
