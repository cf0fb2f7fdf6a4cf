"""The events and results of whole jobs, with a scripted model and everything else real."""

import asyncio
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.contract.events import EVENT, Caption, Completed, Delta, Differential, Keyframes, Started, Video
from service.contract.jobs import JobKind, JobStatus
from service.contract.storage.local import keyframe_path, upload_path
from tests.fake_captioner import FakeCaptioner, FakeEncoder
from tests.workers.clips import number_of, numbered, write
from tests.workers.conftest import Bench
from workers.models.engine import Turn
from workers.prompts.trained import TRAINED_PROMPTS as prompts
from workers.roles.summary import within
from workers.roles.turn_runner import DELTA_EVERY_S
from workers.settings import DEMO_CHECKPOINT
from workers.video.collage import PAIR_GAP_PX
from workers.video.selection import batched
from workers.xcomposer2.tokenizer import load_tokenizer, turn_ids


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Eight seconds of numbered frames at ten frames per second."""
    return write(tmp_path / "clip.mp4", [numbered(k) for k in range(80)], fps=10)


async def test_sliding_mode_publishes_all_events_in_order(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner()
    job_id = await bench.video(clip, keyframes="interval")
    job = await bench.run(bench.runner(captioner), job_id)
    events = await bench.events(job_id)

    assert [event.type for event in events[:3]] == ["queued", "started", "video"]
    assert [event.type for event in events[-2:]] == ["caption", "completed"]
    [video] = [event for event in events if isinstance(event, Video)]
    assert (video.width, video.height, video.fps, video.interval_s) == (160, 120, 10, 2.0)
    assert video.duration_s == pytest.approx(8)
    batches = [event for event in events if isinstance(event, Keyframes)]
    assert [batch.complete for batch in batches] == [False] * (len(batches) - 1) + [True]
    assert [k.time_s for k in job.keyframes] == [0, 2, 4, 6, 7.9]
    assert [k.index for k in job.keyframes] == [0, 1, 2, 3, 4]
    assert [(d.keyframe, d.time_s) for d in job.differentials] == [(k.index, k.time_s) for k in job.keyframes]
    deltas = [event for event in events if isinstance(event, Delta)]
    for differential in job.differentials:
        own = [delta for delta in deltas if delta.of == "differential" and delta.keyframe == differential.keyframe]
        assert "".join(delta.text for delta in own) == differential.text
    assert "".join(delta.text for delta in deltas if delta.of == "caption") == job.caption
    assert all((delta.of == "caption") == (delta.keyframe is None) for delta in deltas)
    assert job.status is JobStatus.COMPLETED
    assert job.usage is not None and job.timings_s is not None
    assert (job.usage.prompt_tokens, job.usage.image_tokens, job.usage.completion_tokens) == (600, 250, 12)
    assert all(value is not None for value in job.timings_s.model_dump().values())
    assert not upload_path(bench.data_dir, job_id).exists()


async def test_sliding_mode_uses_the_trained_prompts(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(["A square.", "It moved.", "It left."])
    job_id = await bench.video(clip, keyframes="interval", interval_s=5, hd_num=3, max_tokens=99, temperature=0.5)
    await bench.run(bench.runner(captioner), job_id)

    first, second, third, summary = captioner.turns
    assert first.prompt == prompts.FIRST_FRAME
    assert second.prompt == prompts.differential(0, 0.0, 5.0, "A square.")
    assert third.prompt == prompts.differential(1, 5.0, 7.9, "It moved.")
    assert summary.prompt == prompts.summary([(0.0, "A square."), (5.0, "It moved."), (7.9, "It left.")])
    assert [(t.hd_num, t.max_tokens, t.decoding.temperature) for t in captioner.turns[:3]] == [(3, 99, 0.5)] * 3
    assert summary.image is None
    assert first.image is not None and third.image is not None
    assert number_of(first.image) == 0
    assert third.image.size == (160, 2 * 120 + PAIR_GAP_PX)
    assert number_of(third.image.crop((0, 0, 160, 120))) == 50
    assert number_of(third.image.crop((0, 170, 160, 290))) == 79


async def test_the_model_sees_what_the_keyframe_files_hold(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner()
    job_id = await bench.video(clip, keyframes="interval")
    await bench.run(bench.runner(captioner), job_id)
    image = captioner.turns[0].image
    assert image is not None
    with Image.open(keyframe_path(bench.data_dir, job_id, 0)) as file:
        assert file.format == "JPEG"
        assert (np.asarray(file) == np.asarray(image)).all()


async def test_fast_mode_makes_one_call_with_all_keyframes(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(["All of it."])
    job_id = await bench.video(clip, mode="fast", keyframes="interval")
    job = await bench.run(bench.runner(captioner), job_id)
    [turn] = captioner.turns
    assert turn.prompt == prompts.FAST
    assert turn.hd_num == 16
    assert turn.image is not None
    assert turn.image.size == (100 + 160 + 20, 5 * 140 + 20)
    assert (job.caption, job.keyframes_seen, job.differentials) == ("All of it.", 5, [])


async def test_fast_mode_shows_at_most_sixteen_keyframes(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner()
    job = await bench.run(
        bench.runner(captioner), await bench.video(clip, mode="fast", keyframes="interval", interval_s=0.1)
    )
    assert (len(job.keyframes), job.keyframes_seen) == (80, 16)
    image = captioner.turns[0].image
    assert image is not None
    shown = [number_of(image.crop((100, 10 + k * 140, 260, 130 + k * 140))) for k in range(16)]
    assert shown[0] == 0 and shown[-1] == 79
    assert {b - a for a, b in pairwise(shown)} <= {5, 6}


def flat(level: int) -> np.ndarray:
    frame = np.full((120, 160, 3), (60, level, 90), np.uint8)
    frame[:60, :80] = 200  # FakeEncoder cannot tell apart frames of a single brightness
    return frame


async def test_semantic_keyframes_differ_from_the_previous_keyframe(bench: Bench, tmp_path: Path) -> None:
    levels = [20] * 25 + [240] * 20 + [238] * 10 + [20] * 25  # changes at 2.5 s and 5.5 s
    path = write(tmp_path / "levels.mp4", [flat(level) for level in levels], fps=10)
    encoder = FakeEncoder()
    runner = bench.runner(FakeCaptioner(), encoder=encoder)
    job = await bench.run(runner, await bench.video(path, interval_s=1.0, similarity_threshold=0.95))
    assert [k.time_s for k in job.keyframes] == [0, 3, 6, 7.9]
    assert sum(encoder.batches) == 9
    every = await bench.run(runner, await bench.video(path, interval_s=1.0, similarity_threshold=1.0))
    assert len(every.keyframes) >= 4
    last = await bench.run(runner, await bench.video(path, interval_s=1.0, similarity_threshold=-1))
    assert [k.time_s for k in last.keyframes] == [0, 7.9]


async def test_captioning_starts_before_keyframe_selection_ends(bench: Bench, tmp_path: Path) -> None:
    path = write(tmp_path / "long.mp4", [numbered(k) for k in range(200)], fps=10)
    job_id = await bench.video(path, keyframes="interval", interval_s=0.1)
    await asyncio.to_thread(bench.runner(FakeCaptioner()).run_job, job_id)
    await bench.until(job_id, lambda job: len(job.keyframes) == 200)
    events = await bench.events(job_id)
    first_caption = next(k for k, event in enumerate(events) if isinstance(event, Differential))
    complete = next(k for k, event in enumerate(events) if isinstance(event, Keyframes) and event.complete)
    assert first_caption < complete


async def test_batches_mark_the_last_frame() -> None:
    async def numbers():  # type: ignore[no-untyped-def]
        for k in range(20):
            yield k

    batches = [batch async for batch in batched(numbers(), 8)]  # type: ignore[arg-type]
    assert [n for batch, _ in batches for n in batch] == list(range(20))
    assert [last for _, last in batches] == [False] * (len(batches) - 1) + [True]
    assert all(1 <= len(batch) <= 8 for batch, _ in batches)


async def test_deltas_are_published_at_most_ten_times_per_second(bench: Bench) -> None:
    captioner = FakeCaptioner(["word " * 200], delay_s=0.004)
    job_id = await bench.recaption("a cat")
    job = await bench.run(bench.runner(captioner), job_id)
    stored = [e async for e in bench.store.events(job_id) if e.event.type == "delta"]
    duration_s = (stored[-1].at - stored[0].at).total_seconds()
    assert 5 <= len(stored) <= duration_s / DELTA_EVERY_S + 3, "one in each interval, and the last one"
    between = stored[1:-1]  # the first one may come late in its interval, the last one does not wait for the next
    mean_gap_s = (between[-1].at - between[0].at).total_seconds() / (len(between) - 1)
    assert mean_gap_s >= DELTA_EVERY_S * 0.95
    assert "".join(e.event.text for e in stored if isinstance(e.event, Delta)) == job.caption == ("word " * 200).strip()


async def test_recaption(bench: Bench) -> None:
    captioner = FakeCaptioner(["A very long cat."])
    job_id = await bench.recaption("a cat", max_tokens=7)
    job = await bench.run(bench.runner(captioner), job_id)
    assert job.caption == "A very long cat."
    assert captioner.turns[0].prompt == prompts.recaption("a cat")
    assert captioner.turns[0].max_tokens == 7
    types = [e.type for e in await bench.events(job_id)]
    assert [name for name in types if name != "delta"] == [
        "queued",
        "started",
        "caption",
        "completed",
    ]


async def test_a_truncated_text_has_the_finish_reason_length(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(["short", "one two three four five", "short", "one two three four five"])
    job_id = await bench.video(clip, keyframes="interval", interval_s=5, max_tokens=4)
    job = await bench.run(bench.runner(captioner), job_id)
    assert [d.finish_reason for d in job.differentials] == ["stop", "length", "stop"]
    assert (job.caption, job.finish_reason) == ("one two three four", "length")
    events = await bench.events(job_id)
    assert [e.finish_reason for e in events if isinstance(e, Differential)] == ["stop", "length", "stop"]
    assert [e.finish_reason for e in events if isinstance(e, Caption)] == ["length"]


@pytest.mark.parametrize("max_tokens", [2, 3])
async def test_fast_mode_and_recaption_have_a_finish_reason(bench: Bench, clip: Path, max_tokens: int) -> None:
    expected = "length" if max_tokens == 2 else "stop"
    runner = bench.runner(FakeCaptioner(["one two three"] * 2))
    fast = await bench.run(runner, await bench.video(clip, mode="fast", keyframes="interval", max_tokens=max_tokens))
    assert fast.finish_reason == expected
    recaption = await bench.run(runner, await bench.recaption("a cat", max_tokens=max_tokens))
    assert recaption.finish_reason == expected


def test_events_stored_without_a_finish_reason_stay_readable() -> None:
    caption = EVENT.validate_python({"type": "caption", "text": "A cat."})
    assert isinstance(caption, Caption) and caption.finish_reason is None
    assert "finish_reason" not in caption.data()


async def test_a_clip_is_captioned_from_stored_differentials(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner()
    runner = bench.runner(captioner)
    parent = await bench.video(clip, keyframes="interval")
    differentials = (await bench.run(runner, parent)).differentials
    assert not upload_path(bench.data_dir, parent).exists(), "the video has been deleted"
    job = await bench.run(runner, await bench.clip(parent, 3.0, 6.5))
    expected = [(d.time_s, d.text) for d in differentials[1:4]]  # 2.0 s is in force at 3.0 s
    assert captioner.turns[-1].prompt == prompts.summary(expected)
    assert job.caption == f"answer {len(captioner.turns)}"
    assert within(differentials, 0.0, 2.0) == differentials[:2]
    assert within(differentials, 100.0, 200.0) == differentials[-1:]


async def test_a_clip_of_a_running_job_and_of_a_missing_job(bench: Bench, clip: Path) -> None:
    runner = bench.runner(FakeCaptioner(delay_s=0.05))
    parent = await bench.video(clip, keyframes="interval", interval_s=0.5)
    await asyncio.to_thread(runner.run_job, parent)
    early = await bench.run(runner, await bench.clip(parent, 0, 1))
    assert early.error is not None and early.error.code == "invalid_option"
    await bench.until(parent, lambda job: len(job.differentials) >= 2)
    job = await bench.run(runner, await bench.clip(parent, 0, 60))
    assert job.status is JobStatus.COMPLETED
    assert await bench.store.kind_and_status(parent) == (JobKind.VIDEO, JobStatus.RUNNING)
    lost = await bench.run(runner, await bench.clip("cap_gone", 0, 1))
    assert lost.error is not None and lost.error.code == "not_found"


class CountingTokens(FakeCaptioner):
    """Counts tokens with the demo model's tokenizer, and rejects prompts that do not fit, as an engine does."""

    def __init__(self, context_tokens: int) -> None:
        super().__init__(context_tokens=context_tokens)
        self._tokenizer = load_tokenizer(DEMO_CHECKPOINT)

    async def prompt_tokens(self, turn: Turn) -> int:
        return len(turn_ids(self._tokenizer, turn.prompt, image=False))

    def count_tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))


SENTENCES = (
    "The red star moves to the right. ",
    "A person in a long coat walks by. ",
    "変化はない。",
    "Ещё 1 шаг 🟨! ",
)


async def test_many_differentials_are_summarised_in_groups(bench: Bench, clip: Path) -> None:
    """1,000 differentials, from empty to longer than the context of 2,048 tokens."""
    lengths = [160 if k % 100 == 25 else k % 12 for k in range(1000)]
    captioner = CountingTokens(context_tokens=2048)
    assert captioner.count_tokens(SENTENCES[1] * 160) > 2048
    runner = bench.runner(captioner)
    parent = await bench.video(clip)
    lease = await bench.store.claim(parent)
    assert lease is not None
    for k, length in enumerate(lengths):
        event = Differential(keyframe=k, time_s=k * 2.0, text=SENTENCES[k % 4] * length)
        await bench.store.append(lease, k + 2, event)
    captioner.answers = [SENTENCES[0] * 40] * 1000
    job = await bench.run(runner, await bench.clip(parent, 0, 5000))
    assert job.status is JobStatus.COMPLETED, job.error
    assert len(captioner.turns) > 50
    last = captioner.turns[-1].prompt
    assert last.startswith("Summarize the following per frame descriptions:\nVideo frame 1 at 0.00 Second(s)")
    deltas = [e for e in await bench.events(job.id) if isinstance(e, Delta)]
    assert "".join(d.text for d in deltas) == job.caption, "only the final summary is streamed"


async def test_no_input_exceeds_the_context(bench: Bench, clip: Path) -> None:
    captioner = FakeCaptioner(["A sentence of five words. " * 2000] * 50, context_tokens=2048)
    runner = bench.runner(captioner)
    job = await bench.run(runner, await bench.video(clip, keyframes="interval", max_tokens=8192))
    assert job.status is JobStatus.COMPLETED, job.error
    assert captioner.turns[1].prompt.endswith("A sentence of five words.")
    refused = await bench.run(runner, await bench.video(clip, hd_num=55))
    assert refused.error is not None and refused.error.code == "invalid_option"
    long = await bench.run(runner, await bench.recaption("word " * 799))
    assert long.status is JobStatus.COMPLETED
    captioner.context_tokens = 512
    longer = await bench.run(runner, await bench.recaption("word " * 799))
    assert longer.error is not None and longer.error.code == "invalid_option"


async def test_max_keyframes_widens_the_interval(bench: Bench, clip: Path) -> None:
    job = await bench.run(
        bench.runner(FakeCaptioner()), await bench.video(clip, keyframes="interval", interval_s=0.5, max_keyframes=3)
    )
    assert [k.time_s for k in job.keyframes] == [0, 3.9, 7.9]
    assert job.interval_s == pytest.approx(3.95)


@pytest.mark.parametrize("selection", ["semantic", "interval"])
async def test_real_videos_complete(bench: Bench, videos: list[Path], selection: str) -> None:
    runner = bench.runner(FakeCaptioner())
    for path in videos:
        job_id = await bench.video(path, keyframes=selection)
        job = await bench.run(runner, job_id)
        assert job.status is JobStatus.COMPLETED, job.error
        assert job.source is not None and job.source.duration_s is not None
        times = [k.time_s for k in job.keyframes]
        assert times[0] == 0 and times == sorted(set(times))
        assert job.source.duration_s - 0.1 <= times[-1] < job.source.duration_s
        if selection == "interval":
            assert times[:-1] == pytest.approx([2.0 * k for k in range(len(times) - 1)], abs=0.04)
        assert [d.time_s for d in job.differentials] == times
        events = await bench.events(job_id)
        assert sum(isinstance(e, Started | Video | Caption | Completed) for e in events) == 4
