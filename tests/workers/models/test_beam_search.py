"""Beam search gives the same tokens as Hugging Face's `generate`, and stops as early."""

import random
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from workers.models.beam_search import BeamSearch

VOCABULARY = 14
PROMPT = [3, 5, 7]


def tiny_model(seed: int, stop_bias: float, stop_ids: Iterable[int]) -> LlamaForCausalLM:
    """Return a random model. `stop_bias` is added to the logits of `stop_ids`."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, initializer_range=1.0, **sizes)).eval()
    bias = torch.zeros(VOCABULARY)
    bias[list(stop_ids)] = stop_bias
    model.lm_head.bias = torch.nn.Parameter(bias)
    return model


@torch.inference_mode()
def searched(model: LlamaForCausalLM, search: BeamSearch) -> int:
    """Run the search on `model` and return its number of steps."""
    steps = 0
    while not search.done:
        steps += 1
        batch = torch.tensor([[*PROMPT, *beam.tokens] for beam in search.running])
        logprobs = model(batch).logits[:, -1].log_softmax(-1)
        search.advance([_likeliest(row, search.candidates) for row in logprobs])
    return steps


def _likeliest(logprobs: Tensor, count: int) -> dict[int, float]:
    values, tokens = logprobs.topk(min(count, VOCABULARY))
    return dict(zip(tokens.tolist(), values.tolist(), strict=True))


def generated(model: LlamaForCausalLM, num_beams: int, max_tokens: int, stop_ids: list[int]) -> tuple[list[int], int]:
    """Return the answer of Hugging Face's beam search and the number of its steps."""
    options = {"do_sample": False, "early_stopping": False, "length_penalty": 1.0, "pad_token_id": 0}
    output = model.generate(
        torch.tensor([PROMPT]),
        num_beams=num_beams,
        max_new_tokens=max_tokens,
        eos_token_id=stop_ids,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    tokens = output.sequences[0, len(PROMPT) :].tolist()
    ends = [k for k, token in enumerate(tokens) if token in stop_ids]
    return tokens[: ends[0] + 1] if ends else tokens, len(output.scores)


@pytest.mark.parametrize("num_beams", [2, 3, 4, 8])
@pytest.mark.parametrize("stop_ids", [[1], [1, 2]], ids=["one stop token", "two stop tokens"])
def test_the_answer_and_the_number_of_steps_are_those_of_hugging_face(num_beams: int, stop_ids: list[int]) -> None:
    options = random.Random(num_beams)
    reasons = set()
    for seed in range(25):
        model = tiny_model(seed, options.choice([-2.0, 0.0, 2.0, 4.0]), stop_ids)
        max_tokens = options.choice([1, 2, 5, 24])
        search = BeamSearch(num_beams, max_tokens, stop_ids)
        steps = searched(model, search)
        expected, expected_steps = generated(model, num_beams, max_tokens, stop_ids)
        assert list(search.finished[0].tokens) == expected, (seed, max_tokens)
        assert steps == expected_steps, (seed, max_tokens)
        reasons.add((search.finish_reason, steps < max_tokens))
    assert {("stop", True), ("length", False)} <= reasons, "the cases cover both ends of an answer"
