"""The table of model families: a new row is all that a new family needs."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from workers.commands import generate, vllm_args
from workers.models import families
from workers.models.families import FAMILIES, ModelFamily, family_of
from workers.prompts.trained import TrainedPrompts
from workers.settings import Settings

ROOT = Path(__file__).resolve().parents[3]


class NovelRenderer:
    """A `TurnRenderer` that only counts words."""

    takes_hd_num = True
    stop_ids = (7,)

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    async def prompt_tokens(self, turn: Any) -> int:
        return self.count_tokens(turn.prompt)

    async def render(self, turn: Any) -> Any:
        return {"prompt_token_ids": [1]}


NOVEL = ModelFamily(
    name="novel",
    matches=lambda config: "Novel" in config["architectures"],
    engine_args=lambda model: {"model": model, "tokenizer_mode": "novel"},
    gpu_args={"dtype": "bfloat16"},
    prompts="xcomposer2",
    images_per_turn=lambda _: 1,
    turn_renderer=lambda *_: NovelRenderer(),
    needs_server_args=True,
)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint of a family that has a row in the table."""
    monkeypatch.setattr(families, "FAMILIES", (NOVEL, *FAMILIES))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Novel"], "sharecap": {"hd_num": 3}}))
    return str(tmp_path)


def test_each_checkpoint_has_a_family() -> None:
    assert family_of({"architectures": ["InternLMXComposer2ForCausalLM"]}).name == "xcomposer2"
    assert family_of({"architectures": ["Idefics3ForConditionalGeneration"]}).name == "chat"
    assert family_of({}).name == "chat"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # importing vLLM in this process warns
async def test_the_captioner_uses_the_row(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only vLLM's engine is replaced."""
    from workers.models import vllm_captioner  # noqa: PLC0415 (see the warning)

    received: dict[str, Any] = {}

    class EngineArgs:
        def __init__(self, **arguments: Any) -> None:
            received.update(arguments)

        def create_engine_config(self, _: object) -> Any:
            return SimpleNamespace(model_config=None)

    config = SimpleNamespace(max_model_len=512, try_get_generation_config=dict)
    engine = SimpleNamespace(renderer=SimpleNamespace(get_eos_token_id=lambda: 2), model_config=config, errored=False)
    monkeypatch.setattr(vllm_captioner, "AsyncEngineArgs", EngineArgs)
    monkeypatch.setattr(vllm_captioner, "AsyncLLM", SimpleNamespace(from_vllm_config=lambda *_args, **_options: engine))
    monkeypatch.setenv("ENGINE_ARGS", '{"max_num_seqs": 7, "tokenizer_mode": "other"}')
    captioner = vllm_captioner.VllmCaptioner.start(Settings(model=model))
    assert (received["model"], received["tokenizer_mode"], received["max_num_seqs"]) == (model, "other", 7)
    assert isinstance(captioner.prompts, TrainedPrompts)
    assert captioner.count_tokens("three short words") == 3
    assert captioner.takes_hd_num
    assert (captioner.context_tokens, captioner.defaults.hd_num) == (512, 3)


@pytest.mark.parametrize("name", ["model", "trust_remote_code", "scheduling_policy"])
def test_engine_args_cannot_replace_what_the_worker_depends_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_ARGS", json.dumps({name: "x"}))
    with pytest.raises(ValidationError, match=f"ENGINE_ARGS must not contain {name}"):
        Settings()


def test_the_commands_use_the_row(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "_silence_libraries", lambda: None)  # it silences this process for good
    assert vllm_args.main([model]) == 0
    assert capsys.readouterr().out == "--tokenizer-mode novel\n"
    assert generate.main(["--model", model, "--prompt", "hi"]) == 1
    assert "generate does not support" in capsys.readouterr().err


def test_importing_the_table_loads_neither_torch_nor_vllm() -> None:
    program = """\
import sys, workers.commands.generate, workers.commands.vllm_args
print({'torch', 'transformers', 'vllm'} & set(sys.modules))"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout == "set()\n"
