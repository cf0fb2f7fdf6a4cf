"""What each trainer wants to know about a clip: one small function per trainer.

Paths are relative, except for trainers that open a path as it stands, so that a relative one would depend on the
directory in which the trainer is started.
"""

import json
from typing import Any

import pyarrow as pa

from sharecap_client.datasets.exports.clips import Clip
from sharecap_client.datasets.exports.target import Target

SIMPLETUNER_TYPES = pa.schema(
    [
        *((name, pa.string()) for name in ("filename", "caption")),
        *((name, pa.int64()) for name in ("width", "height", "num_frames")),
        ("fps", pa.float64()),
    ]
)
OPEN_SORA_TYPES = pa.schema(
    [
        *((name, pa.string()) for name in ("path", "text")),
        *((name, pa.int64()) for name in ("num_frames", "height", "width")),
        ("aspect_ratio", pa.float64()),
        ("resolution", pa.int64()),
        ("fps", pa.float64()),
    ]
)
VIDEOFOLDER_TYPES = pa.schema(
    [
        *((name, pa.string()) for name in ("file_name", "caption", "id")),
        *((name, pa.int64()) for name in ("width", "height")),
        *((name, pa.float64()) for name in ("fps", "duration_s")),
    ]
)


def musubi(clip: Clip, target: Target) -> dict[str, Any]:
    return {"video_path": str(target.final / clip.name), "caption": clip.caption}


def simpletuner(clip: Clip, target: Target) -> dict[str, Any]:
    """The trainer skips videos whose number of frames it cannot find in the table."""
    row = clip.row
    size = {"width": row.width, "height": row.height}
    return {"filename": clip.name, "caption": clip.caption, **size, "num_frames": row.frames, "fps": row.fps}


def diffsynth(clip: Clip, target: Target) -> dict[str, Any]:
    return {"video": clip.name, "prompt": clip.caption}


def videox_fun(clip: Clip, target: Target) -> dict[str, Any]:
    size = {"width": clip.row.width, "height": clip.row.height}
    return {"file_path": clip.name, "text": clip.caption, "type": "video", **size}


def fastvideo(clip: Clip, target: Target) -> dict[str, Any]:
    row = clip.row
    return {
        "path": clip.name,
        "cap": [clip.caption],
        "resolution": {"width": row.width, "height": row.height},
        "fps": row.fps,
        "duration": row.duration_s,
        "num_frames": row.frames,
    }


def open_sora(clip: Clip, target: Target) -> dict[str, Any]:
    """`aspect_ratio` is height / width, and `resolution` the number of pixels."""
    row = clip.row
    width, height = row.width or 0, row.height or 0
    return {
        "path": str(target.final / clip.name),
        "text": clip.caption,
        "num_frames": row.frames,
        "height": height,
        "width": width,
        "aspect_ratio": height / width,
        "resolution": height * width,
        "fps": row.fps,
    }


def open_sora_plan(clip: Clip, target: Target) -> dict[str, Any]:
    row = clip.row
    return {
        "path": clip.name,
        "cap": [clip.caption],
        "resolution": {"height": row.height, "width": row.width},
        "num_frames": row.frames,
        "fps": row.fps,
    }


def ltx(clip: Clip, target: Target) -> dict[str, Any]:
    return {"caption": clip.caption, "video": clip.name}


def videofolder(clip: Clip, target: Target) -> dict[str, Any]:
    row = clip.row
    sizes = {"width": row.width, "height": row.height, "fps": row.fps, "duration_s": row.duration_s}
    return {"file_name": clip.name, "caption": clip.caption, "id": row.id, **sizes}


def webdataset(clip: Clip) -> dict[str, Any]:
    """Everything that is known, for `key.json`."""
    return json.loads(clip.row.model_dump_json(exclude={"options", "job"}))  # type: ignore[no-any-return]


def sharegpt4video(clip: Clip, target: Target) -> dict[str, Any]:
    """One row of the published data set: texts keep their line breaks, and the whole caption has the index -1.

    `keyframe` holds frame numbers, `timestamp` the same in seconds.
    """
    row = clip.row
    times_s = [text.time_s for text in row.differentials]
    texts = [{"idx": str(number), "content": text.text} for number, text in enumerate(row.differentials)]
    return {
        "video_id": clip.stem,
        "video_path": clip.name,
        "timestamp": times_s,
        "keyframe": [round(time_s * (row.fps or 0)) for time_s in times_s],
        "captions": [*texts, {"idx": "-1", "content": row.text}],
    }
