"""The storage interface: everything that the gateway and the workers do with the files of a job.

A job has at most one upload, its video, and the JPEG files of its keyframes; with `keep_video` also a kept video.
`LocalStorage` keeps them in the data directory. Another backend implements `Storage` and is selected in `backends.py`.

When an upload is deleted
-------------------------
An upload is deleted as soon as no attempt can need it again. That is the case once the job's last keyframe is stored,
once the job has ended, or once its record is deleted. `delete_upload` or `delete_job_files` is called by the process
that causes the state:

    all keyframes stored         the worker, after the `keyframes` event with `complete` is in the stream
    job completed or failed      the worker, right before the final event: it still holds the lease, and a client that
      or cancelled, leased       sees the final event no longer finds an upload
    job ended without a worker   the gateway that cancelled it, or the reaper that ended it
    job not accepted             the gateway, if Redis did not confirm the record (`service/intake/submission.py`)
    record deleted               the gateway that deletes the job; the worker that finds its lease gone for this reason
    pipeline run by a script     `workers/standalone.py`, which has neither a record nor a lease, at the end of the run

A job with `keep_video` has a second file, its kept video, which is the same file as the upload under another name. It
is not affected by these rules: it exists until the record is deleted.

A process that is killed in between leaves the file behind. The retention sweep (`service/upkeep/retention.py`) then
deletes uploads of ended jobs and files without a job, with `delete_file`. Deleting a file that does not exist is not an
error.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from service.contract.errors import VideoTooLarge

WRITE_BYTES = 1 << 20
"""Received bytes are written in blocks of at least this size."""


class FileKind(Enum):
    """What a stored file is."""

    UPLOAD = "upload"
    KEYFRAMES = "keyframes"
    VIDEO = "video"


@dataclass(frozen=True)
class StoredFile:
    """An upload, complete or still arriving, all keyframes of one job, or its kept video.

    `changed_at`: seconds since the epoch.
    """

    kind: FileKind
    name: str
    job_id: str
    changed_at: float


def too_large(max_bytes: int) -> VideoTooLarge:
    """Return the error for a video of more than `max_bytes`."""
    return VideoTooLarge(f"The file is larger than the limit of {max_bytes} bytes.")


class IncomingVideo(ABC):
    """A video that is being received. It is discarded at the end of its context unless it was committed."""

    path: Path
    """A local file that holds the video after `sync`."""
    size: int
    """How many bytes were written."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """SHA-256 of the bytes written."""

    @abstractmethod
    async def write(self, data: bytes | bytearray) -> None:
        """Append `data`. Raises VideoTooLarge, and StorageFull if too little free space would be left."""

    @abstractmethod
    async def sync(self) -> None:
        """Make what was written durable; nothing can be written afterwards. Raises StorageFull."""

    @abstractmethod
    async def commit(self, job_id: str) -> None:
        """Make the video the upload of this job, durably and in one step. Raises StorageFull."""


class Storage(ABC):
    """Files of all jobs. Job ids that could lead to other files raise ValueError."""

    @abstractmethod
    def prepare(self) -> None:
        """Create what the storage needs before first use."""

    @abstractmethod
    def check_free_space(self, more_bytes: int = 0) -> None:
        """Raise StorageFull if a new job that stores `more_bytes` would leave too little free space."""

    @abstractmethod
    def receive(self, max_bytes: int, job_id: str | None = None) -> AbstractAsyncContextManager[IncomingVideo]:
        """Return a context in which a video of at most `max_bytes` is received.

        With `job_id`, partial files of the job's earlier attempts are deleted first.
        """

    @abstractmethod
    async def store_copy(self, job_id: str, path: Path) -> None:
        """Store a copy of the local file `path` as the job's upload."""

    @abstractmethod
    async def has_upload(self, job_id: str) -> bool:
        """Return whether the job's upload exists."""

    @abstractmethod
    async def local_upload(self, job_id: str) -> Path:
        """Return a local file that holds the job's upload. Raises FileNotFoundError."""

    @abstractmethod
    async def keep_video(self, job_id: str) -> None:
        """Keep the job's upload as its video until the job's files are deleted."""

    @abstractmethod
    async def local_video(self, job_id: str) -> Path:
        """Return a local file that holds the job's kept video. Raises FileNotFoundError."""

    @abstractmethod
    async def delete_upload(self, job_id: str) -> None:
        """Delete the job's upload. The module's docstring says when this is done."""

    @abstractmethod
    async def write_keyframe(self, job_id: str, index: int, jpeg: bytes) -> None:
        """Store the JPEG file of a keyframe, durably and in one step. Raises StorageFull."""

    @abstractmethod
    async def local_keyframe(self, job_id: str, index: int) -> Path:
        """Return a local JPEG file of the keyframe. Raises FileNotFoundError."""

    @abstractmethod
    async def delete_job_files(self, job_id: str) -> None:
        """Delete the job's upload, keyframes and kept video."""

    @abstractmethod
    async def list_files(self, kind: FileKind) -> list[StoredFile]:
        """Return all stored files of this kind."""

    @abstractmethod
    async def delete_file(self, file: StoredFile) -> None:
        """Delete a file that `list_files` returned."""
