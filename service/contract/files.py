"""Where the data directory keeps what is too big for Redis. Names come from the server alone, never from a client."""

from pathlib import Path


def upload_path(data_dir: Path, job_id: str) -> Path:
    """The video of a job, as it was uploaded or fetched."""
    return data_dir / "uploads" / job_id


def keyframe_path(data_dir: Path, job_id: str, index: int) -> Path:
    """The JPEG of one keyframe."""
    return keyframes_dir(data_dir, job_id) / f"{index}.jpg"


def keyframes_dir(data_dir: Path, job_id: str) -> Path:
    return data_dir / "keyframes" / job_id


def keyframe_url(job_id: str, index: int) -> str:
    """The path under which the gateway serves a keyframe."""
    return f"/captions/{job_id}/keyframes/{index}.jpg"
