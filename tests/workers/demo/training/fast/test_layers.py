"""New layers leave text alone, whatever they learn, and change nothing before they are trained."""

import pytest
import torch
from torch import Tensor

from workers.demo.training.fast.layers import extended, make_optimisers, new_layers, train_only
from workers.demo.training.model import DemoModel, Sizes

SMALL = Sizes(
    crop=32, patch=8, vision_hidden=32, vision_layers=1, vision_heads=2, vision_mlp=48, hidden=64, layers=4, heads=2,
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


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, SMALL.vocabulary, (2, 9))


@pytest.fixture
def image(model: DemoModel) -> Tensor:
    with torch.no_grad():
        _, merged = model.see(torch.randn(2, 3, SMALL.crop, SMALL.crop))
        return model.image_tokens(merged, merged[:, None, None])


def test_new_layers_change_nothing_at_first(model: DemoModel, ids: Tensor, image: Tensor) -> None:
    larger = extended(model)
    assert len(larger.layer_outputs(ids, image)) == 8
    torch.testing.assert_close(larger.hidden(ids, image), model.hidden(ids, image))


def test_trained_layers_change_nothing_without_an_image(model: DemoModel, ids: Tensor, image: Tensor) -> None:
    larger = extended(model)
    layers = new_layers(larger)
    train_only(larger, layers)
    outputs = [layer.attention.wo.Plora_B.weight for layer in layers[:-1]] + [layers[-1].attention.wo.weight]
    before = [weight.clone() for weight in outputs]
    optimisers = make_optimisers(layers, torch.nn.Linear(2, 2))
    for _ in range(3):
        larger.hidden(ids, image).square().mean().backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    assert not any(torch.equal(*pair) for pair in zip(before, outputs, strict=True)), "every new layer learns"
    larger.eval()
    assert not torch.allclose(larger.hidden(ids, image), model.hidden(ids, image), atol=1e-3)
    assert torch.equal(larger.hidden(ids), model.hidden(ids))
