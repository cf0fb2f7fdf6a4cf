"""The partial LoRA operator: which rows change, in which batches it runs, and that a compiled graph may contain it."""

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # importing vLLM in this process warns

TOKENS, INPUTS, OUTPUTS, RANK, SCALE = 12, 8, 6, 4, 0.5
Tensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def plora() -> ModuleType:
    from workers.xcomposer2 import plora  # noqa: PLC0415 (see the warning)

    return plora


def tensors(image_rows: list[int]) -> Tensors:
    """Return y, x, is_image, A and B."""
    generator = torch.Generator().manual_seed(len(image_rows))
    y, x, a, b = (
        torch.randn(shape, generator=generator)
        for shape in ((TOKENS, OUTPUTS), (TOKENS, INPUTS), (RANK, INPUTS), (OUTPUTS, RANK))
    )
    is_image = torch.zeros(TOKENS, dtype=torch.bool)
    is_image[image_rows] = True
    return y, x, is_image, a, b


def expected(y: Tensor, x: Tensor, is_image: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(is_image[:, None], y + SCALE * x @ a.T @ b.T, y)


def add(y: Tensor, x: Tensor, is_image: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Apply the operator to the result of a linear layer, as the layers do."""
    y = y + 0
    torch.ops.sharecap_xcomposer2.add_partial_lora(y, x, is_image, a, b, SCALE)
    return y


@pytest.mark.parametrize("rows", [[], [3], [0, 4, 5], list(range(TOKENS))], ids=len)
def test_sliced_and_masked_terms_change_the_rows_of_image_tokens_only(plora: ModuleType, rows: list[int]) -> None:
    y, *others = tensors(rows)
    masked = y.clone()
    plora.add_masked(masked, *others, SCALE)
    for result in (add(y, *others), masked):
        torch.testing.assert_close(result, expected(y, *others))
    assert torch.equal(add(y, *others)[~others[1]], y[~others[1]])


@pytest.mark.usefixtures("plora")
def test_a_compiled_graph_gives_the_same_result() -> None:
    y, *others = tensors([1, 2, 7])
    compiled: Any = torch.compile(add, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(y, *others), add(y, *others))


def batch(plora: ModuleType, monkeypatch: pytest.MonkeyPatch, longest_query: int) -> None:
    """Pretend that vLLM runs a batch whose requests add at most `longest_query` tokens."""
    context = SimpleNamespace(attn_metadata={"layer": SimpleNamespace(max_query_len=longest_query)})
    monkeypatch.setattr(plora, "is_forward_context_available", lambda: True)
    monkeypatch.setattr(plora, "get_forward_context", lambda: context)


def test_a_decoding_batch_computes_nothing(plora: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    y, *others = tensors([2])
    batch(plora, monkeypatch, longest_query=1)
    with torch.profiler.profile() as profile:
        result = add(y, *others)
    assert torch.equal(result, y)
    names = {event.key for event in profile.key_averages()}
    assert "sharecap_xcomposer2::add_partial_lora" in names
    assert not names & {"aten::linear", "aten::addmm_", "aten::mm", "aten::nonzero"}


def test_the_mask_is_read_once_for_all_layers_of_a_batch(plora: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    y, *others = tensors([2, 3])
    batch(plora, monkeypatch, longest_query=5)
    with torch.profiler.profile() as profile:
        results = [add(y, *others) for _ in range(4)]
    assert all(torch.equal(result, results[0]) for result in results)
    assert [event.count for event in profile.key_averages() if event.key == "aten::nonzero"] == [1]
