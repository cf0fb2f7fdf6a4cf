"""A chat model that vLLM supports itself, run by `sharecap up`: all roles over HTTP, with a short context.

The model is tiny and random, so its answers mean nothing. The tests check the prompts and the token counts.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, Idefics3ForConditionalGeneration, Idefics3Processor

from service.local.up import free_port
from tests.reference.chat_checkpoint import CLOSE, IMAGE, PROMPTS, write_chat_checkpoint, write_text_checkpoint
from tests.workers.clips import numbered, write

CONTEXT_TOKENS = 768
LONG = {"keyframes": "interval", "interval_s": 0.8, "max_tokens": 48}
JOB_TIMEOUT_S = 240


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_checkpoint(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def service(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    data_dir, port = tmp_path_factory.mktemp("service"), free_port()
    command = [sys.executable, "-m", "sharecap_client.cli", "up", "--model", str(model), "--port", str(port)]
    env = {**os.environ, "MAX_MODEL_LEN": str(CONTEXT_TOKENS), "CPU_KV_CACHE_GIB": "0.2"}
    process = psutil.Popen([*command, "--data-dir", str(data_dir)], env=env, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stderr.readline()
        assert "sharecap is ready" in line, line
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=JOB_TIMEOUT_S) as http:
            yield http
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        for remaining in [*process.children(recursive=True), process] if process.is_running() else ():
            remaining.kill()
        process.stderr.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of six seconds, 160 x 120."""
    return write(tmp_path_factory.mktemp("clip") / "clip.mp4", [numbered(k) for k in range(60)], fps=10)


def finished_job(http: httpx.Client, response: httpx.Response) -> dict[str, Any]:
    """Return the job once its stream has ended."""
    assert response.is_success, response.text
    http.get(response.json()["links"]["events"]).raise_for_status()
    job: dict[str, Any] = http.get(response.json()["links"]["self"]).json()
    return job


def caption(http: httpx.Client, video: Path, **options: Any) -> dict[str, Any]:
    with video.open("rb") as file:
        return finished_job(http, http.post("/captions", files={"file": (video.name, file)}, data=options))


@pytest.fixture(scope="module")
def sliding_job(service: httpx.Client, video: Path) -> dict[str, Any]:
    """A finished job in the sliding mode."""
    return caption(service, video, **LONG)


def image_tokens(model: Path, *sizes: tuple[int, int]) -> int:
    """Return the number of tokens of the images, according to the model's own processor."""
    processor = Idefics3Processor.from_pretrained(model)
    blank = [Image.new("RGB", size) for size in sizes]
    return len(processor(text=IMAGE * len(sizes), images=blank)["input_ids"][0])


def prompt_ids(model: Path, prompt: str) -> list[int]:
    """Return the token ids of a text turn, according to the model's own chat template."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    messages = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return ids


def test_each_pair_is_shown_as_two_images(sliding_job: dict[str, Any], model: Path) -> None:
    assert sliding_job["status"] == "completed", sliding_job["error"]
    assert len(sliding_job["differentials"]) == 9
    assert sliding_job["caption"]
    one, two = image_tokens(model, (160, 120)), image_tokens(model, (160, 120), (160, 120))
    assert sliding_job["usage"]["image_tokens"] == one + 8 * two
    texts = sum(len(d["text"]) for d in sliding_job["differentials"])
    assert texts > CONTEXT_TOKENS, "the summary needs several groups"


def test_a_clip(service: httpx.Client, sliding_job: dict[str, Any]) -> None:
    response = service.post(f"/captions/{sliding_job['id']}/clips", json={"start_s": 1, "end_s": 2, "max_tokens": 8})
    clip = finished_job(service, response)
    assert clip["status"] == "completed", clip["error"]
    assert clip["usage"]["image_tokens"] == 0
    assert clip["caption"]


def test_fast_mode(service: httpx.Client, video: Path, model: Path) -> None:
    job = caption(service, video, mode="fast", keyframes="interval", max_tokens=8)
    assert job["status"] == "completed", job["error"]
    assert job["keyframes_seen"] == 4
    tall = (100 + 160 + 20, 4 * 140 + 20)
    assert job["usage"]["image_tokens"] == image_tokens(model, tall)


@pytest.mark.parametrize("beams", [1, 2])
def test_special_tokens_in_a_prompt_are_neutralised(service: httpx.Client, model: Path, beams: int) -> None:
    body = {"prompt": f"a star {CLOSE} {IMAGE}", "max_tokens": 8, "num_beams": beams}
    response = service.post("/recaption", json=body).raise_for_status().json()
    prompt = PROMPTS.recaption("a star < |im_end|> < image>")
    job = service.get(response["links"]["self"]).json()
    assert job["usage"]["prompt_tokens"] == len(prompt_ids(model, prompt))
    assert 0 < job["usage"]["completion_tokens"] <= 8


@pytest.mark.parametrize("beams", [2, 4])
def test_beam_search_gives_the_text_of_hugging_face(service: httpx.Client, model: Path, beams: int) -> None:
    body = {"prompt": "a quick brown fox", "max_tokens": 12, "num_beams": beams}
    answer = service.post("/recaption", json=body).raise_for_status().json()
    reference = Idefics3ForConditionalGeneration.from_pretrained(model, dtype="float32").eval()
    prompt = torch.tensor([prompt_ids(model, PROMPTS.recaption(body["prompt"]))])
    options = {"num_beams": beams, "do_sample": False, "early_stopping": False, "max_new_tokens": 12}
    tokens = reference.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[0, prompt.shape[1] :]
    expected = AutoTokenizer.from_pretrained(model).decode(tokens, skip_special_tokens=True)
    assert answer["caption"] == expected.strip()


def test_hd_num_is_rejected(service: httpx.Client, video: Path) -> None:
    job = caption(service, video, hd_num=4)
    assert job["status"] == "failed"
    assert job["error"]["code"] == "invalid_option"
    assert "hd_num" in job["error"]["detail"]


def test_the_worker_refuses_a_model_that_takes_no_images(tmp_path: Path, redis_url: str) -> None:
    env = {**os.environ, "REDIS_URL": redis_url, "MODEL": str(write_text_checkpoint(tmp_path / "model"))}
    command = [sys.executable, "-m", "workers.main"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == os.EX_CONFIG, run.stderr
    assert "takes no images" in run.stderr
    assert "Traceback" not in run.stderr
