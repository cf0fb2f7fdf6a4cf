"""The optimisers and the learning-rate schedule."""

import pytest
import torch

from workers.demo.training.optimisers import WARMUP_STEPS, orthogonalised, schedule


def test_orthogonalised_updates_have_singular_values_near_one() -> None:
    torch.manual_seed(2)
    for shape in ((3, 64, 32), (2, 32, 64)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        assert 0.6 < values.min() < values.max() < 1.3


def test_rates_rise_then_fall_to_zero() -> None:
    assert schedule(0, 0.0) == pytest.approx(1 / WARMUP_STEPS)
    assert schedule(1000, 0.25) == pytest.approx(0.75)
    assert schedule(1000, 1.0) == 0.0
