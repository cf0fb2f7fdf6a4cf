"""Every command that uses a service, with a real one: what it prints, writes and returns."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sharecap_client import AsyncClient, Client
from sharecap_client.cli.errors import describe
from sharecap_client.errors import NotFound, RateLimited, Unauthorized

from tests.client.conftest import ROOT, Sharecap
from tests.client.live_service import LiveService
from tests.conftest import MakeClip

CAPTION = "A light square moves to the right."


@pytest.fixture(autouse=True)
def service(live: LiveService, sharecap: Sharecap, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands of this module use the module's service."""
    monkeypatch.setenv("SHARECAP_URL", live.url.removeprefix("http://"))


def test_caption_shows_captions_and_prints_the_id_at_once(sharecap: Sharecap, clip: Path) -> None:
    result = sharecap("caption", clip)
    assert (result.status, result.err[:8]) == (0, "job cap_")
    assert "0.00 s  A light square." in result.out and f"caption  {CAPTION}" in result.out


def test_every_option_of_the_api_is_a_flag(sharecap: Sharecap, clip: Path) -> None:
    flags = (
        "--mode sliding --keyframes semantic --interval 1.5 --similarity-threshold 0.9 --max-keyframes 7 --start 0.5 "
        "--end 2.5 --hd-num 4 --parallel --cut-threshold 0.5 --keep-video --max-tokens 64 --temperature 0.5 "
        "--num-beams 2 --seed 3 --deadline 600 --metadata a=b --metadata c=d=e"
    )
    job = json.loads(sharecap("caption", clip, *flags.split(), "--json").out)
    assert job["metadata"] == {"a": "b", "c": "d=e"}
    assert {name: value for name, value in job["options"].items() if name != "webhook_url"} == {
        **{"mode": "sliding", "keyframes": "semantic", "interval_s": 1.5, "similarity_threshold": 0.9},
        **{"max_keyframes": 7, "start_s": 0.5, "end_s": 2.5, "hd_num": 4, "parallel": True, "cut_threshold": 0.5},
        **{"keep_video": True, "max_tokens": 64, "temperature": 0.5, "num_beams": 2, "seed": 3, "deadline_s": 600.0},
    }
    refused = sharecap("caption", clip, "--webhook-url", "http://example.com/")
    assert refused.status == 1 and "error: --webhook-url: this service does not send webhooks" in refused.err
    late = sharecap("caption", clip, "--start", "7")
    assert late.status == 1 and "--start: the video lasts 3.000 s" in late.out + late.err
    assert "--interval: " in sharecap("caption", clip, "--interval", "0", "--json").err
    assert "KEY=VALUE" in sharecap("caption", clip, "--metadata", "a").err


def test_the_format_follows_the_flag_or_the_file(sharecap: Sharecap, clip: Path, tmp_path: Path) -> None:
    assert sharecap("caption", clip, "--format", "srt").out.startswith("1\n00:00:00,000 --> 00:00:02,000\n")
    result = sharecap("caption", clip, "--out", tmp_path / "new" / "captions.vtt")
    assert (tmp_path / "new" / "captions.vtt").read_text().startswith("WEBVTT\n")
    assert CAPTION in result.out and f"wrote {tmp_path}/new/captions.vtt" in result.err
    sharecap("caption", clip, "--format", "txt", "--out", f"{tmp_path}/directory/")
    assert (tmp_path / "directory" / "clip.txt").is_file()


@pytest.mark.parametrize("command", ["caption", "recaption"])
def test_a_file_that_cannot_be_written_is_reported_before_anything_is_sent(
    sharecap: Sharecap, clip: Path, tmp_path: Path, command: str
) -> None:
    for out in ("/proc/captions.srt", "/proc/captions/", clip / "captions.srt"):
        result = sharecap(command, clip, "--out", out)
        assert (result.status, result.err.count("\n")) == (1, 1)
        assert f"cannot write {str(out).rstrip('/')}: " in result.err
    assert "cannot read" in sharecap("caption", "missing.mp4", "--out", tmp_path / "new" / "a.srt").err
    assert not (tmp_path / "new").exists()


def test_several_videos_are_captioned_into_a_directory(
    sharecap: Sharecap, clip: Path, tmp_path: Path, make_clip: MakeClip
) -> None:
    (tmp_path / "other").mkdir()
    same_name = make_clip(tmp_path / "other" / "clip.mp4", seconds=1)
    out = tmp_path / "captions"
    result = sharecap("caption", clip, same_name, "--out", out, "--format", "srt", "--concurrency", "1")
    assert result.status == 0, result.err
    assert sorted(path.name for path in out.iterdir()) == ["clip-2.srt", "clip.srt"]
    assert result.err.count("job cap_") == 2 and result.err.endswith("2 of 2 videos captioned\n")


def test_a_video_that_fails_does_not_stop_the_others(sharecap: Sharecap, clip: Path) -> None:
    result = sharecap("caption", ROOT / "LICENSE", clip, "--json")
    [job] = [json.loads(line) for line in result.out.splitlines()]
    assert (result.status, job["caption"]) == (1, CAPTION)
    assert "LICENSE: " in result.err and "1 of 2 videos captioned" in result.err
    texts = sharecap("caption", clip, clip).out
    assert texts.count("== clip.mp4 ==\n") == 2
    assert "use --out DIRECTORY" in sharecap("caption", clip, clip, "--format", "srt").err


def test_a_video_from_standard_input(sharecap: Sharecap, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with clip.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        job = json.loads(sharecap("caption", "-", "--json").out)
    assert (job["source"]["filename"], job["source"]["bytes"]) == ("stdin", clip.stat().st_size)


def test_inputs_that_cannot_be_read_are_reported_before_anything_is_sent(sharecap: Sharecap, clip: Path) -> None:
    folder = sharecap("caption", clip, clip.parent)
    assert folder.status == 1 and f"`sharecap batch {clip.parent} --out RUN`" in folder.err and "job" not in folder.err
    assert "cannot read no-such.mp4: No such file" in sharecap("caption", clip, "no-such.mp4").err


def test_recaption_clip_and_clips(sharecap: Sharecap, clip: Path) -> None:
    assert "caption  A red fox." in sharecap("recaption", "a fox").out
    assert "has no times" in sharecap("recaption", "a fox", "--format", "srt").err
    video = sharecap("caption", clip, "--detach").out.strip()
    assert sharecap("watch", video).status == 0
    part = json.loads(sharecap("clip", video, "--start", "0.5", "--end", "2", "--json", "--max-tokens", "64").out)
    assert (part["kind"], part["parent"], part["options"]["max_tokens"]) == ("clip", video, 64)
    assert sharecap("clips", video).out == f"{part['id']}  0:00.500–0:02.000  A red fox.\n"
    assert json.loads(sharecap("clips", video, "--json").out)["id"] == part["id"]
    assert "the video lasts 3.000 s" in sharecap("clip", video, "--start", "7", "--end", "8").err


def test_show_and_watch(sharecap: Sharecap, clip: Path) -> None:
    job_id = sharecap("caption", clip, "--detach").out.strip()
    watched = sharecap("watch", job_id)
    assert f"caption  {CAPTION}" in watched.out and watched.err == ""
    shown = sharecap("show", job_id).out
    assert shown.startswith(f"{job_id}  video  completed  clip.mp4\n") and CAPTION in shown
    rows = list(csv.DictReader(io.StringIO(sharecap("show", job_id, "-f", "csv").out)))
    assert rows[-1]["text"] == CAPTION


def test_jobs_lists_and_filters(sharecap: Sharecap, clip: Path) -> None:
    ids = [sharecap("caption", clip, "--detach").out.strip() for _ in range(3)]
    for job_id in ids:
        sharecap("watch", job_id)
    lines = [line.split("\t") for line in sharecap("jobs", "--limit", "2").out.splitlines()]
    assert [line[0] for line in lines] == [ids[2], ids[1]]
    assert lines[0][1:3] == ["completed", "video"] and lines[0][4] == "clip.mp4"
    listed = [json.loads(line) for line in sharecap("jobs", "--json", "-n", "0", "--kind", "video").out.splitlines()]
    assert {job["id"] for job in listed} >= set(ids) and {job["kind"] for job in listed} == {"video"}
    assert sharecap("jobs", "--status", "failed").err == "no job matches\n"


def test_cancel_and_rm_say_what_they_did(sharecap: Sharecap, clip: Path) -> None:
    job_id = sharecap("caption", clip, "--detach").out.strip()
    sharecap("watch", job_id)
    assert sharecap("cancel", job_id).err == f"{job_id} had already ended (completed)\n"
    result = sharecap("rm", job_id, "cap_unknown")
    assert result.status == 1
    assert result.err.splitlines()[0] == f"{job_id} is deleted"
    assert "cap_unknown: This job does not exist." in result.err and "`sharecap jobs`" in result.err
    assert sharecap("show", job_id).status == 1


def test_an_interrupted_command_leaves_the_job_running(sharecap: Sharecap, live: LiveService, clip: Path) -> None:
    command = [sys.executable, "-m", "sharecap_client.cli", "caption", str(clip), "--metadata", "hold=yes"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            job_id = process.stderr.readline().split()[-1]
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130 and "Traceback" not in rest
    assert "the job continues" in rest
    assert f"sharecap watch {job_id}\n" in rest and f"sharecap cancel {job_id}\n" in rest
    with Client(live.url) as client:
        assert client.job(job_id).status in ("queued", "running")
    assert sharecap("cancel", job_id).err in (f"{job_id} stops within seconds\n", f"{job_id} is cancelled\n")


def test_completion_knows_the_commands() -> None:
    env = {**os.environ, "_SHARECAP_COMPLETE": "complete_bash", "COMP_WORDS": "sharecap cl", "COMP_CWORD": "1"}
    command = [Path(sys.executable).parent / "sharecap"]
    listed = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()
    assert listed == ["clip", "clips"]


def test_errors_say_what_to_do_next() -> None:
    assert "--api-key or SHARECAP_API_KEY" in describe(Unauthorized("no")) and "--data-dir" in describe(
        Unauthorized("no")
    )
    assert describe(NotFound("This job does not exist.")).endswith("`sharecap jobs` lists your jobs.")
    assert describe(RateLimited("Too many.", retry_after_s=9)).endswith("Try again in 9 s.")


def test_the_scheme_of_the_url_can_be_left_out(live: LiveService) -> None:
    assert AsyncClient(live.url.removeprefix("http://")).url == live.url
    assert AsyncClient("https://h/prefix/").url == "https://h/prefix"
