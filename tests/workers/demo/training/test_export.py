"""Exported checkpoints."""

from pathlib import Path

import torch

from workers.demo.training import export
from workers.demo.training.model import DemoModel, Sizes


def test_an_exported_checkpoint_reads_back(tmp_path: Path) -> None:
    sizes = Sizes(vision_layers=1, layers=1)
    model = DemoModel(sizes)
    (tmp_path / "tokenizer").write_bytes(b"vocabulary")
    export.write(model, tmp_path / "tokenizer", tmp_path / "checkpoint")
    read = export.read(tmp_path / "checkpoint")
    assert read.sizes == sizes
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)
