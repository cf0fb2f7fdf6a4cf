"""The whole service as users run it: `sharecap up` with the demo model, over HTTP, with real videos.

All tests of this module share one service, because starting the real engine takes most of the time.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from httpx_sse import connect_sse

from tests.whole_service import JOB_TIMEOUT_S, Service, whole_service
from workers.demo import language, scenes

ROOT = Path(__file__).parents[1]
NO_WAIT = {"Prefer": "wait=0"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with whole_service(tmp_path_factory.mktemp("service")) as started:
        yield started


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "sample.mp4"
    scenes.write_clip(path, scenes.sample_clip())
    return path


def check_structure(events: list[tuple[int, str, dict[str, Any]]], job: dict[str, Any]) -> None:
    """Check what holds for every completed sliding job, regardless of its text."""
    assert [seq for seq, _, _ in events] == list(range(1, len(events) + 1))
    types = [type_ for _, type_, _ in events]
    assert types[:2] == ["queued", "started"]
    assert types[-2:] == ["caption", "completed"]
    keyframes = [keyframe for _, type_, data in events if type_ == "keyframes" for keyframe in data["keyframes"]]
    assert [keyframe["index"] for keyframe in keyframes] == list(range(len(keyframes)))
    times = [keyframe["time_s"] for keyframe in keyframes]
    assert times[0] < 0.1
    assert times == sorted(set(times))
    assert times[-1] <= job["source"]["duration_s"]
    differentials = [data for _, type_, data in events if type_ == "differential"]
    assert [(d["keyframe"], d["time_s"]) for d in differentials] == list(enumerate(times))
    assert job["keyframes"] == keyframes
    assert job["differentials"] == differentials
    assert job["caption"] == events[-2][2]["text"]
    assert job["status"] == "completed"
    assert job["usage"]["prompt_tokens"] > job["usage"]["image_tokens"] > 0
    for keyframe, differential in enumerate(differentials):
        deltas = [d["text"] for _, type_, d in events if type_ == "delta" and d.get("keyframe") == keyframe]
        assert "".join(deltas) == differential["text"]


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text)


def changes_in(texts: list[str]) -> list[str | None]:
    """Return the change that each text describes; texts that describe no change are left out."""
    return [change for change in map(language.read_change, texts) if change != "none"]


def test_everything_in_the_data_directory_is_private(service: Service, sample: Path) -> None:
    recaption = service.http.post("/recaption", json={"prompt": "A fox"}, headers=NO_WAIT).json()["id"]
    for job_id in (service.submit(sample), recaption):
        assert service.events(job_id)[-1][1] == "completed"
    modes = {path: path.lstat().st_mode & 0o777 for path in service.data_dir.rglob("*")}
    assert {"uploads", "keyframes", "valkey", "logs", "lock"} <= {path.name for path in service.data_dir.iterdir()}
    assert [path for path in modes if path.suffix == ".jpg"] and [path for path in modes if path.suffix == ".aof"]
    for path, mode in modes.items():
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_sample_clip_is_captioned_correctly(service: Service, sample: Path) -> None:
    job_id = service.submit(sample, metadata='{"set": "demo"}')
    events = service.events(job_id)
    job = service.job(job_id)
    check_structure(events, job)
    assert job["metadata"] == {"set": "demo"}
    scene = scenes.sample_clip()
    texts = [d["text"] for d in job["differentials"]]
    assert language.read_thing(texts[0]) == (scene.states[0].shape, scene.states[0].colour)
    assert changes_in(texts[1:]) == list(scene.changes)
    assert changes_in(sentences(job["caption"])[1:]) == list(scene.changes)
    image = service.http.get(job["keyframes"][0]["image"])
    assert image.headers["content-type"] == "image/jpeg"
    assert image.content[:2] == b"\xff\xd8"
    assert not list((service.data_dir / "uploads").iterdir()), "the upload is deleted once it is not needed"


def test_stream_resumes_after_the_last_received_event(service: Service, sample: Path) -> None:
    job_id = service.submit(sample)
    with connect_sse(service.http, "GET", f"/captions/{job_id}/events") as source:
        stream = (e for e in source.iter_sse() if e.data)
        seen = [next(stream) for _ in range(6)]
    rest = service.events(job_id, after=int(seen[-1].id))
    whole = service.events(job_id)
    assert whole == [(int(e.id), e.event, json.loads(e.data)) for e in seen] + rest
    ended = service.http.get(f"/captions/{job_id}/events", headers={"Last-Event-ID": str(whole[-1][0])})
    assert ended.status_code == 204


@pytest.mark.parametrize("keyframes", ["semantic", "interval"])
def test_real_videos_are_captioned(service: Service, videos: list[Path], keyframes: str) -> None:
    """The demo model's text about real videos is meaningless; times, events and structure must be correct."""
    ids = [service.submit(video, keyframes=keyframes) for video in videos]
    with ThreadPoolExecutor(len(ids)) as pool:
        streams = list(pool.map(service.events, ids))
    for job_id, events in zip(ids, streams, strict=True):
        job = service.job(job_id)
        check_structure(events, job)
        if keyframes == "interval":
            times = [k["time_s"] for k in job["keyframes"][:-1]]
            assert times == pytest.approx([2.0 * k for k in range(len(times))], abs=0.05)


def test_fast_mode_returns_one_caption(service: Service, sample: Path) -> None:
    job_id = service.submit(sample, mode="fast", keyframes="interval")
    events = service.events(job_id)
    job = service.job(job_id)
    assert events[-1][1] == "completed"
    assert job["caption"]
    assert job["differentials"] == []
    assert job["keyframes_seen"] == len(job["keyframes"]) > 2


def test_recaption_waits_and_streams(service: Service) -> None:
    prompt = "a red star that moves right and turns cyan"
    waited = service.http.post("/recaption", json={"prompt": prompt})
    assert waited.status_code == 200
    caption = waited.json()["caption"]
    assert language.read_thing(caption) == ("star", "red")
    assert changes_in(sentences(caption)[1:]) == ["right", "colour"]
    with connect_sse(service.http, "POST", "/recaption", json={"prompt": prompt, "stream": True}) as source:
        events = [(e.event, json.loads(e.data)) for e in source.iter_sse() if e.data]
    assert "".join(data["text"] for type_, data in events if type_ == "delta") == caption
    assert events[-1][0] == "completed"


def test_decoding_options_reach_the_model(service: Service) -> None:
    def recaption(**options: object) -> dict[str, Any]:
        # text unlike the training data, so that the model is uncertain about each token
        body = {"prompt": "an old dog sings in the rain of may", "max_tokens": 32} | options
        answer = service.http.post("/recaption", json=body)
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        return job

    greedy = recaption()
    assert greedy["options"]["deadline_s"] > 0
    assert greedy["timings_s"]["queued"] >= 0 and greedy["timings_s"]["captioning"] > 0
    assert greedy["usage"]["prompt_tokens"] > 10 and greedy["usage"]["image_tokens"] == 0
    sampled = [recaption(temperature=2.0, seed=seed)["caption"] for seed in (1, 1, 2, 3, 4)]
    assert sampled[0] == sampled[1], "the same seed must give the same text"
    assert len({greedy["caption"], *sampled}) > 2, "other seeds must give other texts"
    assert recaption(num_beams=3)["caption"]
    short = recaption(max_tokens=3)
    assert short["usage"]["completion_tokens"] == 3
    assert (short["finish_reason"], greedy["finish_reason"]) == ("length", "stop")
    assert greedy["caption"].startswith(short["caption"])
    late = service.http.post("/recaption", json={"prompt": "a red star", "deadline_s": 0.001})
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")


def test_parallel_shots_are_captioned_separately(service: Service, sample: Path) -> None:
    """The demo model's encoder sees each change of the sample clip as a cut."""
    job_id = service.submit(sample, parallel="true")
    events = service.events(job_id)
    job = service.job(job_id)
    assert events[-1][1] == "completed"
    shots = [keyframe["shot"] for keyframe in job["keyframes"]]
    assert shots == sorted(shots) and shots[-1] >= 2
    assert [d["keyframe"] for d in job["differentials"]] == list(range(len(shots)))
    second = shots.index(1)
    assert language.read_thing(job["differentials"][second]["text"]) == ("star", "red"), "described anew"


def test_clip_is_captioned_from_stored_differentials(service: Service, sample: Path) -> None:
    job_id = service.submit(sample)
    service.events(job_id)
    answer = service.http.post(f"/captions/{job_id}/clips", json={"start_s": 3.0, "end_s": 8.0})
    assert answer.status_code == 200, answer.text
    assert answer.json()["caption"]
    assert answer.json()["usage"]["image_tokens"] == 0


@pytest.mark.parametrize(
    ("content", "options", "status", "code"),
    [
        (b"", {}, 422, "not_a_video"),
        (b"just some words\n" * 100, {}, 422, "not_a_video"),
        (None, {"interval": "2"}, 422, "invalid_option"),
        (None, {"interval_s": "0"}, 422, "invalid_option"),
    ],
)
def test_invalid_input_returns_a_documented_error_and_leaves_no_upload(
    service: Service, sample: Path, *, content: bytes | None, options: dict[str, str], status: int, code: str
) -> None:
    body = sample.read_bytes() if content is None else content
    answer = service.http.post("/captions", files={"file": ("clip.mp4", body)}, data=options)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    assert "Traceback" not in answer.text
    assert not list((service.data_dir / "uploads").iterdir())


def test_unknown_job_id_returns_404(service: Service) -> None:
    for path in ("/captions/cap_none", "/captions/cap_none/events"):
        answer = service.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_caption_command_captions_a_file(service: Service, sample: Path) -> None:
    def caption(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sharecap_client.cli", "caption", str(path)]
        command += ["--url", str(service.http.base_url)]
        return subprocess.run(command, capture_output=True, text=True, timeout=JOB_TIMEOUT_S, check=False)

    captioned = caption(sample)
    assert captioned.returncode == 0, captioned.stderr
    assert "red star" in captioned.stdout
    refused = caption(ROOT / "LICENSE")
    assert refused.returncode == 1
    assert "not_a_video" in refused.stderr


def worker_of(service: Service) -> psutil.Process:
    """Return the worker process, recognised by the process title that RQ sets."""
    (worker,) = (p for p in service.process.children() if p.cmdline() and p.cmdline()[0].startswith("rq:worker"))
    return worker


def test_killed_worker_is_restarted_and_the_job_completes(service: Service, sample: Path) -> None:
    """The supervisor restarts the worker, which then takes the queued job."""
    before = worker_of(service)
    before.kill()
    job_id = service.submit(sample)
    events = service.events(job_id)
    check_structure(events, service.job(job_id))
    assert worker_of(service).pid != before.pid


async def test_a_visit_to_the_page(service: Service, sample: Path, tmp_path: Path) -> None:
    """A user's whole visit in a real browser. `make soak` repeats it on other screens and with an API key."""
    from tests.service.web import browsing, visit  # noqa: PLC0415  # skips the test without a browser

    second = tmp_path / "square.mp4"
    scenes.write_clip(second, scenes.make_scene(7))
    async with browsing.chromium() as browser:
        await visit.visit(browser, visit.demo_site(str(service.http.base_url)), "desktop-light", sample, second)
