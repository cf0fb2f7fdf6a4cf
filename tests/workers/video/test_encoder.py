"""The keyframe encoder: preprocessing, features, and batches shared by jobs."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel

from workers.demo import scenes, world
from workers.models.engine import ModelDefaults
from workers.settings import DEMO_CHECKPOINT
from workers.video.encoder import ClipEncoder, Preprocessor

MEAN, STD = [0.48, 0.45, 0.40], [0.26, 0.26, 0.27]
CONFIG = {
    "size": {"shortest_edge": 56},
    "crop_size": {"height": 56, "width": 56},
    "resample": 3,
    "image_mean": MEAN,
    "image_std": STD,
}


def noise(seed: int, size: tuple[int, int] = (120, 80)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


VISION = CLIPVisionConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory that contains a small random encoder."""
    directory = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    CLIPVisionModel(VISION).save_pretrained(directory / "small")
    (directory / "small" / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    return directory


@pytest.mark.parametrize("size", [(120, 80), (80, 120), (57, 300), (56, 56)])
def test_pixels_are_resized_cropped_and_normalised(size: tuple[int, int]) -> None:
    image = noise(1, size)
    pixels = Preprocessor(CONFIG)(image)
    assert pixels.shape == (3, 56, 56)
    scale = 56 / min(size)
    resized = image.resize((int(size[0] * scale + 1e-9), int(size[1] * scale + 1e-9)), Image.Resampling.BICUBIC)
    left, top = (resized.width - 56) // 2, (resized.height - 56) // 2
    centre = np.asarray(resized, np.float32)[top : top + 56, left : left + 56] / 255
    assert np.allclose(pixels, ((centre - MEAN) / STD).transpose(2, 0, 1), atol=1e-5)


def test_preprocessor_files_with_sizes_as_numbers() -> None:
    older = {**CONFIG, "size": 56, "crop_size": 56}
    assert np.array_equal(Preprocessor(older)(noise(1)), Preprocessor(CONFIG)(noise(1)))
    exact = {**CONFIG, "size": {"height": 56, "width": 56}, "do_center_crop": False}
    assert Preprocessor(exact)(noise(1)).shape == (3, 56, 56)


async def test_the_feature_is_the_cls_token_before_the_final_norm(checkpoint: Path) -> None:
    images = [noise(k) for k in range(3)]
    features = await ClipEncoder(str(checkpoint), "small").encode(images)
    model = CLIPVisionModel.from_pretrained(checkpoint / "small").eval()
    pixels = torch.from_numpy(np.stack([Preprocessor(CONFIG)(image) for image in images]))
    with torch.no_grad():
        out = model(pixels, output_hidden_states=True)
    cls = out.hidden_states[-1][:, 0]
    assert not torch.allclose(cls, out.pooler_output), "the pooler output is after the norm"
    expected = torch.nn.functional.normalize(cls, dim=-1).numpy()
    assert np.allclose(features, expected, atol=1e-5)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


async def test_concurrent_jobs_share_batches_and_get_their_own_features(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ClipEncoder(str(checkpoint), "small")
    alone = [await encoder.encode([noise(k), noise(k + 100)]) for k in range(8)]
    batches: list[int] = []
    forward = encoder._forward
    monkeypatch.setattr(encoder, "_forward", lambda images: (batches.append(len(images)), forward(images))[1])
    together = await asyncio.gather(*(encoder.encode([noise(k), noise(k + 100)]) for k in range(8)))
    assert sum(batches) == 16 and len(batches) <= 2
    assert np.allclose(np.stack(alone), np.stack(together), atol=1e-5)


async def test_a_failure_only_affects_the_current_batch(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ClipEncoder(str(checkpoint), "small")
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "_forward", lambda images: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await encoder.encode([noise(1)])
    assert (await encoder.encode([noise(1)])).shape == (1, 64)


async def test_frames_of_a_cancelled_job_are_not_encoded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ClipEncoder(str(checkpoint), "small")
    batches: list[int] = []
    forward = encoder._forward
    monkeypatch.setattr(encoder, "_forward", lambda images: (batches.append(len(images)), forward(images))[1])
    first = asyncio.create_task(encoder.encode([noise(1)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)  # its batch has started
    second, third = (asyncio.create_task(encoder.encode([noise(k)] * k)) for k in (2, 3))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(first, third)
    assert batches == [1, 3]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def repository(hub: Path, name: str) -> Path:
    root, commit = hub / f"models--{name.replace('/', '--')}", "0" * 40
    files = root / "snapshots" / commit
    files.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    return files


async def test_the_default_encoder_is_the_published_clip(hub: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The published repository contains the complete CLIP, including the text encoder, in one `pytorch_model.bin`."""
    files = repository(hub, "openai/clip-vit-large-patch14-336")
    torch.manual_seed(1)
    text = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=100,
        bos_token_id=0,
        eos_token_id=1,
    )
    clip = CLIPModel(CLIPConfig(vision_config=VISION.to_dict(), text_config=text.to_dict(), projection_dim=16)).eval()
    clip.config.save_pretrained(files)
    torch.save(clip.state_dict(), files / "pytorch_model.bin")
    (files / "preprocessor_config.json").write_text(json.dumps(CONFIG))
    capfd.readouterr()
    encoder = ClipEncoder("some/captioner", ModelDefaults().keyframe_encoder)
    assert capfd.readouterr() == ("", ""), "loading prints nothing"
    pixels = torch.from_numpy(Preprocessor(CONFIG)(noise(1))[None])
    with torch.no_grad():
        cls = clip.vision_model(pixels).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(cls, dim=-1).numpy()
    assert np.allclose(await encoder.encode([noise(1)]), expected, atol=1e-5)


def test_a_checkpoint_on_the_hub_may_contain_its_own_encoder(hub: Path, checkpoint: Path) -> None:
    target = repository(hub, "some/captioner") / "small"
    target.mkdir()
    for file in (checkpoint / "small").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    ClipEncoder("some/captioner", "small")


def test_an_incomplete_image_encoder_is_rejected(checkpoint: Path, tmp_path: Path) -> None:
    for file in (checkpoint / "small").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = CLIPVisionModel(VISION).state_dict()
    del weights["pre_layrnorm.weight"]
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pre_layrnorm\.weight"):
        ClipEncoder(str(tmp_path), str(tmp_path))


async def test_half_precision_gives_the_same_cosines_as_full_precision() -> None:
    """GPUs use half precision. Cosines agree best for similar frames, where keyframes are decided."""
    encoder = ClipEncoder(str(DEMO_CHECKPOINT), "keyframe_encoder")
    scene = scenes.make_scene(world.HELD_OUT_SEED, changes=6)
    drawn = [scenes.draw(state, scene.width, scene.height) for state in scene.states]
    frames = [Image.fromarray(frame) for crf in (18, 30) for frame in scenes.through_h264(drawn, crf)]
    full = await encoder.encode(frames)
    encoder._model.half()
    half = await encoder.encode(frames)
    cosines, errors = full @ full.T, np.abs(full @ full.T - half @ half.T)
    assert errors.max() < 0.01
    similar = (cosines > 0.98) & ~np.eye(len(frames), dtype=bool)
    assert similar.sum() >= len(drawn) and errors[similar].max() < 5e-4
