"""The judge's protocol with vLLM's own server and a random model: every answer fits the schema. Runs under SOAK=1."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from sharecap_client.datasets.evaluation.evaluate import judged_figures
from sharecap_client.datasets.evaluation.references import Pair, Reference

pytestmark = pytest.mark.skipif("SOAK" not in os.environ, reason="starting vLLM takes half a minute: SOAK=1")
START_TIMEOUT_S = 300
OPTIONS = "--dtype float32 --enforce-eager --kv-cache-memory-bytes 100000000 --max-num-seqs 4 --max-model-len 3000"
SCHEMA_OPTIONS = ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')
"""Otherwise a random model writes blanks until its answer is full."""
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny Llama with random weights, whose tokens are bytes."""
    torch, tokenizers, transformers = (pytest.importorskip(name) for name in ("torch", "tokenizers", "transformers"))
    directory = tmp_path / "model"
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, "</s>"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", model_max_length=4096)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary), max_position_embeddings=4096, eos_token_id=vocabulary["</s>"], **sizes
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(model), "--served-model-name", "random"]
    command += ["--host", "127.0.0.1", "--port", str(port), *OPTIONS.split(), *SCHEMA_OPTIONS]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_PLUGINS": ""}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-5000:]
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)


async def test_every_answer_fits_the_schema(server: str, tmp_path: Path) -> None:
    pair = Pair(Reference(id="a", caption="A red star moves. It turns cyan."), "A red star grows.", [], [])
    figures = await judged_figures([pair], server, "random", tmp_path / "judge", repeats=2)
    assert figures["judge"] == f"random at {server}/v1"
    assert all(0 <= figures[name] <= 1 for name in ("recall", "precision", "f1", "contradiction_rate", "agreement"))
    assert len(list((tmp_path / "judge").rglob("*.json"))) >= 2
