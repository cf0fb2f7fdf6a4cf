"""`sharecap vllm-args`: its options, and that vLLM's own server started with them answers like `sharecap generate`."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docs import pages
from tests.reference.checkpoint import random_image
from workers.commands.vllm_args import main, options
from workers.settings import DEMO_CHECKPOINT

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
START_TIMEOUT_S = 500
PROMPT = "This is the first frame of a video, describe it in detail. [UNUSED_TOKEN_145]"
PAGE = pages.commands(ROOT / "docs" / "vllm-serve.md", "console tested: tests/workers/commands/test_vllm_args.py")
PAGE_PORT = "18123"
LIMITS = "--host 127.0.0.1 --max-num-seqs 4"

demo = pytest.mark.skipif(not (DEMO_CHECKPOINT / "config.json").exists(), reason="the demo model is not built")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of `vllm serve` for the demo checkpoint, started by the command in `docs/vllm-serve.md`."""
    [documented] = [command.text for command in PAGE if PAGE_PORT in command.text and "vllm serve" in command.text]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = f"exec {documented.replace(PAGE_PORT, str(port))} {LIMITS}"
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            ["sh", "-c", command], cwd=ROOT, env=env, stdout=out, stderr=out, start_new_session=True
        )
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        process.wait(60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "remote code" not in log.read_text()


def wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        assert process.poll() is None, log.read_text()[-5000:]
        assert time.monotonic() < deadline, log.read_text()[-5000:]
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)


def ask(url: str, content: object) -> dict[str, Any]:
    """Return the response to a greedy request with one user message."""
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": 24,
        "return_token_ids": True,
    }
    response = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


@demo
def test_vllms_own_server_answers_like_generate(server: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    random_image((300, 200), 3).save(path)
    data = base64.b64encode(path.read_bytes()).decode()
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    answer = ask(server, [{"type": "text", "text": PROMPT}, image])
    command = [sys.executable, "-m", "workers.commands.generate", "--model", DEMO_CHECKPOINT, "--prompt", PROMPT]
    command += ["--image", path, "--max-tokens", "24", "--dtype", "float32", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500, check=False)
    assert run.returncode == 0, run.stderr
    generated = json.loads(run.stdout)
    [choice] = answer["choices"]
    assert choice["token_ids"] == generated["token_ids"]
    assert choice["message"]["content"] == generated["text"]
    assert answer["usage"]["prompt_tokens"] == generated["prompt_tokens"]
    assert generated["image_tokens"] > 0
    plain, parts = ask(server, "a red star"), ask(server, [{"type": "text", "text": "a red star"}])
    assert plain["choices"][0]["token_ids"] == parts["choices"][0]["token_ids"]


@demo
def test_the_commands_of_the_page_run_and_print_what_it_shows(server: str, tmp_path: Path) -> None:
    (tmp_path / "workers").symlink_to(ROOT / "workers")
    listed = [command for command in PAGE if not command.text.startswith("vllm serve")]
    texts = [command.text.replace(f"http://localhost:{PAGE_PORT}", server) for command in listed]
    outputs = pages.run(texts, tmp_path, {"PATH": f"{BIN}:{os.environ['PATH']}"})
    for command, output in zip(listed, outputs, strict=True):
        pages.check(command, output)


def write_config(directory: Path, architecture: str) -> str:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (directory / "tokenizer.model").touch()
    return str(directory)


def test_no_option_runs_the_checkpoints_own_code(tmp_path: Path) -> None:
    model = write_config(tmp_path / "model", "InternLMXComposer2ForCausalLM")
    words = list(options(model))
    assert words[words.index("--tokenizer") + 1] == f"{model}/tokenizer.model"
    assert words[words.index("--limit-mm-per-prompt") + 1] == '{"image":1}'
    assert not any("remote" in word for word in words)


@pytest.mark.parametrize(
    ("name", "architecture", "reason"),
    [("a b", "InternLMXComposer2ForCausalLM", "split or expand"), ("other", "LlamaForCausalLM", "architectures is")],
)
def test_models_without_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, architecture: str, reason: str
) -> None:
    assert main([write_config(tmp_path / name, architecture)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert reason in printed.err
