"""The trainable model: its layout against the plugin's geometry, its cache, its export, and its training pictures."""

import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image

from workers.demo import examples, scenes, world
from workers.demo.training import data, export, tokens
from workers.demo.training.data import normalised
from workers.demo.training.model import DemoModel, Sizes, Tokens, deepened, merge
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


def test_a_stored_crop_equals_the_plugins_crops() -> None:
    image = Image.fromarray(scenes.draw(examples.random_state(random.Random(0)), 320, 180))
    expected = crops(image, plan_tiling(320, 180, 1, data.CROP_PX))
    stored = normalised(torch.from_numpy(data.crop_of(image)[None].copy()))
    torch.testing.assert_close(expected, stored.expand(2, -1, -1, -1), atol=1e-5, rtol=1e-5)


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


def test_new_layers_change_nothing_at_first(model: DemoModel) -> None:
    torch.manual_seed(3)
    ids = torch.randint(0, SMALL.vocabulary, (2, 9))
    _, merged = model.see(torch.randn(2, 3, SMALL.crop, SMALL.crop))
    image = model.image_tokens(merged, merged[:, None, None])
    deep = deepened(model, 5)
    assert len(deep.layer_outputs(ids, image)) == 5
    torch.testing.assert_close(deep.hidden(ids, image), model.hidden(ids, image))


def test_exported_checkpoint_reads_back(model: DemoModel, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").write_bytes(b"vocabulary")
    export.write(model, tmp_path / "tokenizer", tmp_path / "checkpoint")
    read = export.read(tmp_path / "checkpoint")
    assert read.sizes == SMALL
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)


def test_the_vocabulary_is_like_the_published_one(tmp_path: Path) -> None:
    tokens.train(tmp_path / "tokenizer.model")
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert (vocabulary.bos_id(), vocabulary.eos_id(), vocabulary.vocab_size()) == (1, 2, tokens.VOCABULARY)
    for text in (" two  spaces ", "naïve 🎈\n\t漢字", "The red circle moves to the left."):
        assert vocabulary.decode(vocabulary.encode(text)) == text
    ids = vocabulary.encode(examples.chat_turn("hi"))
    assert ids[0] == vocabulary.piece_to_id(tokens.CHAT_OPEN) and vocabulary.piece_to_id(tokens.CHAT_CLOSE) in ids


def test_pictures_match_their_encoded_states() -> None:
    scene = scenes.make_scene(11)
    for crop, _, rows in data.all_pictures(scene, random.Random(0)):
        for row in np.array(rows, np.float32):
            state = data.decode_state(row)
            if state.shape:
                centre = crop[int(state.y * data.CROP_PX), int(state.x * data.CROP_PX)].astype(int)
                assert np.abs(centre - world.COLOURS[state.colour]).max() < 40


def test_sampled_pairs_show_the_changes_between_samples_of_the_clip() -> None:
    scene = scenes.make_scene(12, changes=3, size=(320, 180))
    pairs = data.sampled_pairs(scene, random.Random(0))
    kinds = [world.CHANGES[kind] for _, kind, _ in pairs]
    assert [kind for kind in kinds if kind != "none"] == list(scene.changes)
    assert "none" in kinds
    for _, kind, (before, after) in pairs:
        if world.CHANGES[kind] == "none":
            assert before[:3] == after[:3]
