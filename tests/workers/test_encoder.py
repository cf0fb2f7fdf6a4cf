"""The keyframe encoder: the right feature of the right pixels, in batches across jobs."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from workers.encoder import ClipEncoder, Preprocessor

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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's directory with a small random encoder in it."""
    directory = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    CLIPVisionModel(config).save_pretrained(directory / "small")
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


def test_older_preprocessor_files_say_sizes_as_numbers() -> None:
    older = {**CONFIG, "size": 56, "crop_size": 56}
    assert np.array_equal(Preprocessor(older)(noise(1)), Preprocessor(CONFIG)(noise(1)))
    exact = {**CONFIG, "size": {"height": 56, "width": 56}, "do_center_crop": False}
    assert Preprocessor(exact)(noise(1)).shape == (3, 56, 56)


async def test_the_feature_is_the_cls_token_before_the_post_norm(checkpoint: Path) -> None:
    images = [noise(k) for k in range(3)]
    features = await ClipEncoder(str(checkpoint), "small").encode(images)
    model = CLIPVisionModel.from_pretrained(checkpoint / "small").eval()
    pixels = torch.from_numpy(np.stack([Preprocessor(CONFIG)(image) for image in images]))
    with torch.no_grad():
        out = model(pixels, output_hidden_states=True)
    cls = out.hidden_states[-1][:, 0]
    assert not torch.allclose(cls, out.pooler_output), "which is after it"
    expected = torch.nn.functional.normalize(cls, dim=-1).numpy()
    assert np.allclose(features, expected, atol=1e-5)
    assert np.allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


async def test_jobs_share_batches_and_get_their_own_features(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ClipEncoder(str(checkpoint), "small")
    alone = [await encoder.encode([noise(k), noise(k + 100)]) for k in range(8)]
    batches: list[int] = []
    forward = encoder._forward
    monkeypatch.setattr(encoder, "_forward", lambda images: (batches.append(len(images)), forward(images))[1])
    together = await asyncio.gather(*(encoder.encode([noise(k), noise(k + 100)]) for k in range(8)))
    assert sum(batches) == 16 and len(batches) <= 2
    assert np.allclose(np.stack(alone), np.stack(together), atol=1e-5)


async def test_a_failure_reaches_those_who_asked_and_nobody_else(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = ClipEncoder(str(checkpoint), "small")
    with monkeypatch.context() as patch:
        patch.setattr(encoder, "_forward", lambda images: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await encoder.encode([noise(1)])
    assert (await encoder.encode([noise(1)])).shape == (1, 64)
