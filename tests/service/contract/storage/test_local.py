"""Local storage: videos arrive completely or not at all, and no job id leads out of the data directory."""

import hashlib
from collections import namedtuple
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.contract.errors import StorageFull, VideoTooLarge
from service.contract.jobs import JobKind, RecaptionOptions, Record, new_job_id
from service.contract.storage import local
from service.contract.storage.interface import FileKind
from service.contract.storage.local import LocalStorage, keyframe_path, keyframes_dir, upload_path

DATA = Path("/data")
MAX_BYTES = 10_000_000


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    storage = LocalStorage(tmp_path)
    storage.prepare()
    return storage


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["", "..", ".", "../x", "/etc/passwd", "cap_1/../../x", "a/b"])
async def test_no_job_id_leads_out_of_the_data_directory(name: str, storage: LocalStorage) -> None:
    for path_of in (upload_path, keyframes_dir, lambda data, job_id: keyframe_path(data, job_id, 0)):
        with pytest.raises(ValueError, match="is not a job id"):
            path_of(DATA, name)
    for call in (storage.delete_upload(name), storage.delete_job_files(name), storage.local_keyframe(name, 0)):
        with pytest.raises(ValueError, match="is not a job id"):
            await call
    with pytest.raises(ValidationError):
        Record(id=name, kind=JobKind.RECAPTION, options=RecaptionOptions(prompt="x"), created_at=datetime.now(UTC))


def test_files_are_named_after_their_job() -> None:
    job_id = new_job_id()
    assert upload_path(DATA, job_id) == DATA / "uploads" / job_id
    assert keyframe_path(DATA, job_id, 3) == DATA / "keyframes" / job_id / "3.jpg"


async def test_a_committed_video_is_complete(storage: LocalStorage, tmp_path: Path) -> None:
    data = b"video" * 500_000
    job_id = new_job_id()
    async with storage.receive(MAX_BYTES) as video:
        for start in range(0, len(data), 600_000):
            await video.write(data[start : start + 600_000])
        await video.sync()
        assert video.path.read_bytes() == data and not await storage.has_upload(job_id)
        await video.commit(job_id)
    assert (video.size, video.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert names(tmp_path) == [f"uploads/{job_id}"]
    assert (await storage.local_upload(job_id)).read_bytes() == data


async def test_a_video_that_is_not_committed_is_discarded(storage: LocalStorage, tmp_path: Path) -> None:
    async with storage.receive(MAX_BYTES) as video:
        await video.write(b"x")
        await video.sync()
    with pytest.raises(RuntimeError):
        async with storage.receive(MAX_BYTES) as video:
            await video.write(b"x")
            raise RuntimeError
    assert names(tmp_path) == []


async def test_a_video_that_is_too_large_is_refused(storage: LocalStorage, tmp_path: Path) -> None:
    async with storage.receive(3) as video:
        await video.write(b"123")
        with pytest.raises(VideoTooLarge, match="limit of 3 bytes"):
            await video.write(b"4")
    assert names(tmp_path) == []


async def test_a_new_attempt_discards_what_earlier_ones_received(storage: LocalStorage, tmp_path: Path) -> None:
    job_id, other = new_job_id(), new_job_id()
    for name in (f"{job_id}.1.part", f"{other}.1.part"):
        (tmp_path / "uploads" / name).write_bytes(b"abandoned")
    async with storage.receive(MAX_BYTES, job_id) as video:
        await video.sync()
        await video.commit(job_id)
    assert names(tmp_path) == sorted([f"uploads/{job_id}", f"uploads/{other}.1.part"])


async def test_free_space_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(local.shutil, "disk_usage", lambda _: usage(1000))
    storage = LocalStorage(tmp_path, min_free_bytes=900)
    storage.check_free_space(100)
    with pytest.raises(StorageFull):
        storage.check_free_space(101)
    async with storage.receive(MAX_BYTES) as video:
        await video.write(b"x" * 101)
        with pytest.raises(StorageFull):
            await video.sync()


async def test_keyframes_may_use_half_of_the_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(local.shutil, "disk_usage", lambda _: usage(1000))
    storage, job_id = LocalStorage(tmp_path, min_free_bytes=1800), new_job_id()
    with pytest.raises(StorageFull):
        storage.check_free_space()
    await storage.write_keyframe(job_id, 0, b"x" * 100)
    with pytest.raises(StorageFull):
        await storage.write_keyframe(job_id, 1, b"x" * 101)
    assert names(tmp_path) == [f"keyframes/{job_id}/0.jpg"]


async def test_keyframes_are_written_and_replaced(storage: LocalStorage, tmp_path: Path) -> None:
    job_id = new_job_id()
    with pytest.raises(FileNotFoundError):
        await storage.local_keyframe(job_id, 0)
    for jpeg in (b"first", b"second"):
        await storage.write_keyframe(job_id, 0, jpeg)
        assert (await storage.local_keyframe(job_id, 0)).read_bytes() == jpeg
    assert names(tmp_path) == [f"keyframes/{job_id}/0.jpg"]


async def test_deleting_a_jobs_files(storage: LocalStorage, tmp_path: Path) -> None:
    job_id, other = new_job_id(), new_job_id()
    for each in (job_id, other):
        await storage.store_copy(each, Path(__file__))
        await storage.write_keyframe(each, 0, b"jpeg")
    await storage.delete_upload(job_id)
    with pytest.raises(FileNotFoundError):
        await storage.local_upload(job_id)
    for _ in range(2):
        await storage.delete_job_files(job_id)
    assert names(tmp_path) == [f"keyframes/{other}/0.jpg", f"uploads/{other}"]


async def test_listed_files_can_be_deleted(storage: LocalStorage, tmp_path: Path) -> None:
    job_id = new_job_id()
    await storage.store_copy(job_id, Path(__file__))
    (tmp_path / "uploads" / f"{job_id}.1.part").write_bytes(b"x")
    await storage.write_keyframe(job_id, 0, b"jpeg")
    for kind, count in ((FileKind.UPLOAD, 2), (FileKind.KEYFRAMES, 1)):
        files = await storage.list_files(kind)
        assert [file.job_id for file in files] == [job_id] * count
        for file in files:
            await storage.delete_file(file)
    assert names(tmp_path) == []
