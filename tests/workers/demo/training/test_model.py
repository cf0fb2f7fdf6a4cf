"""The trainable model: its token layout is the plugin's, and its cache and its own attention change no result."""

import pytest
import torch
from PIL import Image

from workers.demo.training.model import DemoModel, Sizes, Tokens, causal_attention, merge
from workers.xcomposer2.hd_tiling import plan_tiling
from workers.xcomposer2.image import crops

SMALL = Sizes(
    crop=32, patch=8, vision_hidden=32, vision_layers=1, vision_heads=2, vision_mlp=48, hidden=64, layers=2, heads=2,
    kv_heads=1, mlp=96, vocabulary=300,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> DemoModel:
    torch.manual_seed(0)
    model = DemoModel(SMALL)
    for name, parameter in model.named_parameters():
        if "Plora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_patches_merge_in_row_order() -> None:
    patches = torch.arange(16.0).view(1, 16, 1)  # a 4 x 4 grid
    assert merge(patches)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


@pytest.mark.parametrize(("size", "hd_num"), [((100, 60), 1), ((100, 60), 4), ((60, 200), 6)])
def test_an_image_has_as_many_tokens_as_the_plugin_counts(model: DemoModel, size: tuple[int, int], hd_num: int) -> None:
    tiling = plan_tiling(*size, hd_num, SMALL.crop)
    _, merged = model.see(crops(Image.new("RGB", size, (9, 90, 200)), tiling))
    tiles = merged[None, 1:].unflatten(1, (tiling.rows, tiling.cols))
    assert model.image_tokens(merged[:1], tiles).shape == (1, tiling.image_tokens(SMALL.grid // 2), SMALL.hidden)


def test_cached_decoding_equals_the_full_forward_pass(model: DemoModel) -> None:
    torch.manual_seed(1)
    ids = torch.randint(0, SMALL.vocabulary, (2, 9))
    _, merged = model.see(torch.randn(2, 3, SMALL.crop, SMALL.crop))
    image = model.image_tokens(merged, merged[:, None, None])
    answers = torch.tensor(model.greedy(ids, image, set(), 5))
    states = model.hidden(torch.cat([ids, answers[:, :-1]], 1), image)
    assert torch.equal(model.output(states[:, -5:]).argmax(-1), answers)


def test_partial_lora_changes_image_tokens_only(model: DemoModel) -> None:
    linear, x = model.model.layers[0].attention.wqkv, torch.randn(1, 4, SMALL.hidden)
    low_rank = linear.scale * linear.Plora_B(linear.Plora_A(x))
    mapped = Tokens(x, x).map_kinds(linear)
    torch.testing.assert_close(mapped.text, x @ linear.weight.T)
    torch.testing.assert_close(mapped.image, x @ linear.weight.T + low_rank)


def test_the_image_follows_the_first_token() -> None:
    sequence = Tokens(torch.tensor([[[1.0], [4.0], [5.0]]]), torch.tensor([[[2.0], [3.0]]]))
    assert sequence.joined().flatten().tolist() == [1, 2, 3, 4, 5]
    parts = sequence.split(sequence.joined())
    assert torch.equal(parts.text, sequence.text) and torch.equal(parts.image, sequence.image)


def test_attention_in_training_is_that_of_pytorch() -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(causal_attention(q, k, v), expected)
