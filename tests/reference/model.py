"""The reference implementation of InternLM-XComposer2-4KHD, in plain torch. The plugin must generate the same tokens.

It shares no code with the plugin. It reads the published tensors under their published names and computes in float32,
one sequence at a time, from the first token for each new token. Reading order: image -> crops -> image features ->
prompt -> decoder -> tokens.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
OPEN, CLOSE = "[UNUSED_TOKEN_146]", "[UNUSED_TOKEN_145]"


@dataclass
class Answer:
    """A greedy answer. `margin` is the smallest difference between the two largest logits of any token."""

    prompt_tokens: int
    image_tokens: int
    token_ids: list[int] = field(default_factory=list)
    margin: float = math.inf


class ReferenceModel:
    """The model of one checkpoint directory."""

    def __init__(self, directory: Path) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.tokenizer = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
        self.tensors = {name: tensor.float() for name, tensor in read_tensors(directory).items()}

    @torch.inference_mode()
    def answer(self, prompt: str, image: Image.Image | None, hd_num: int, max_tokens: int) -> Answer:
        """Generate greedily up to and including CLOSE or `</s>`."""
        text = self.tokenizer.encode(f"{OPEN}user\n{prompt}{CLOSE}\n{OPEN}assistant\n")
        embed = self.tensors["model.tok_embeddings.weight"]
        image_rows = self.image_embeddings(image, hd_num) if image else torch.empty(0, embed.shape[1])
        start = embed[[self.tokenizer.bos_id()]]
        states = torch.cat([start, image_rows, embed[text]])
        is_image = torch.zeros(len(states), dtype=torch.bool)
        is_image[1 : 1 + len(image_rows)] = True
        answer = Answer(prompt_tokens=len(states), image_tokens=len(image_rows))
        ends = {self.tokenizer.piece_to_id(CLOSE), self.tokenizer.eos_id()}
        while len(answer.token_ids) < max_tokens:
            best = self.logits(states, is_image).topk(2)
            answer.margin = min(answer.margin, float(best.values[0] - best.values[1]))
            token = int(best.indices[0])
            answer.token_ids.append(token)
            if token in ends:
                break
            states = torch.cat([states, embed[[token]]])
            is_image = torch.cat([is_image, torch.tensor([False])])
        return answer

    # -- images ------------------------------------------------------------------------------------------------

    def image_embeddings(self, image: Image.Image, hd_num: int) -> Tensor:
        """Image -> [image tokens, hidden]."""
        side = self.config["vision_config"]["image_size"]
        pixels = pixels_of(image, hd_num, side)  # [3, rows * side, cols * side]
        rows, cols = pixels.shape[1] // side, pixels.shape[2] // side
        view = F.interpolate(pixels[None], (side, side), mode="bicubic", align_corners=False)[0]
        view_grid = self.crop_features(view)
        strips = []
        for row in range(rows):
            tiles = [
                self.crop_features(pixels[:, row * side : (row + 1) * side, col * side : (col + 1) * side])
                for col in range(cols)
            ]
            strips.append(torch.cat(tiles, dim=1))
        tile_grid = torch.cat(strips, dim=0)  # [rows * m, cols * m, 4 * width]
        between = self.tensors["plora_glb_GN"].reshape(1, -1)
        sequence = torch.cat([self.with_row_ends(view_grid), between, self.with_row_ends(tile_grid)])
        hidden = F.gelu(self.linear(sequence, "vision_proj.0"))
        return self.linear(hidden, "vision_proj.2")

    def with_row_ends(self, grid: Tensor) -> Tensor:
        """Grid [height, width, channels] -> sequence, with the row separator after each row."""
        separator = self.tensors["plora_sub_GN"].reshape(1, -1)
        return torch.cat([torch.cat([row, separator]) for row in grid])

    def crop_features(self, crop: Tensor) -> Tensor:
        """Crop [3, side, side] -> [m, m, 4 * width]: each 2 x 2 block of patches is one token."""
        patches = self.vision_tower(crop)  # [2m, 2m, width]
        quarters = [patches[0::2, 0::2], patches[0::2, 1::2], patches[1::2, 0::2], patches[1::2, 1::2]]
        return torch.cat(quarters, dim=-1)

    def vision_tower(self, crop: Tensor) -> Tensor:
        """CLIP's image encoder, without CLS and without the final norm."""
        vision = self.config["vision_config"]
        name = "vit.vision_tower.vision_model"
        conv = F.conv2d(
            crop[None], self.tensors[f"{name}.embeddings.patch_embedding.weight"], stride=vision["patch_size"]
        )
        side = conv.shape[-1]
        cls = self.tensors[f"{name}.embeddings.class_embedding"][None]
        x = torch.cat([cls, conv[0].flatten(1).T])  # [1 + patches, width]
        x = x + self.tensors[f"{name}.embeddings.position_embedding.weight"]
        x = self.layer_norm(x, f"{name}.pre_layrnorm")
        for number in range(vision["num_hidden_layers"]):
            layer = f"{name}.encoder.layers.{number}"
            x = x + self.vision_attention(self.layer_norm(x, f"{layer}.layer_norm1"), f"{layer}.self_attn")
            inner = self.linear(self.layer_norm(x, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
            x = x + self.linear(inner * torch.sigmoid(1.702 * inner), f"{layer}.mlp.fc2")
        return x[1:].reshape(side, side, -1)

    def vision_attention(self, x: Tensor, name: str) -> Tensor:
        heads = self.config["vision_config"]["num_attention_heads"]
        query, key, value = (
            self.linear(x, f"{name}.{part}_proj").reshape(len(x), heads, -1).transpose(0, 1) for part in "qkv"
        )
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(len(x), -1)
        return self.linear(mixed, f"{name}.out_proj")

    # -- language ----------------------------------------------------------------------------------------------

    def logits(self, x: Tensor, is_image: Tensor) -> Tensor:
        """Embeddings [tokens, hidden] -> logits [vocabulary] of the next token."""
        for number in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{number}"
            normed = self.rms_norm(x, f"{layer}.attention_norm")
            x = x + self.attention(normed, is_image, f"{layer}.attention")
            normed = self.rms_norm(x, f"{layer}.ffn_norm")
            gate = F.silu(self.plora_linear(normed, is_image, f"{layer}.feed_forward.w1"))
            up = self.plora_linear(normed, is_image, f"{layer}.feed_forward.w3")
            x = x + self.plora_linear(gate * up, is_image, f"{layer}.feed_forward.w2")
        return self.tensors["output.weight"] @ self.rms_norm(x[-1], "model.norm")

    def attention(self, x: Tensor, is_image: Tensor, name: str) -> Tensor:
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        group, size = heads // kv_heads, self.config["hidden_size"] // heads
        qkv = self.plora_linear(x, is_image, f"{name}.wqkv").reshape(len(x), kv_heads, group + 2, size)
        mixed = torch.empty(len(x), heads, size)
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        for head in range(heads):
            kv_head = head // group
            query = self.rotated(qkv[:, kv_head, head % group])
            key, value = self.rotated(qkv[:, kv_head, group]), qkv[:, kv_head, group + 1]
            scores = (query @ key.T / math.sqrt(size)).masked_fill(future, -math.inf)
            mixed[:, head] = scores.softmax(-1) @ value
        return self.plora_linear(mixed.reshape(len(x), -1), is_image, f"{name}.wo")

    def rotated(self, x: Tensor) -> Tensor:
        """RoPE, rotate-half, positions from 0. Dynamic NTK has no effect within the trained length."""
        assert len(x) <= self.config["max_position_embeddings"]
        half = x.shape[-1] // 2
        frequency = self.config["rope_theta"] ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = torch.arange(len(x), dtype=torch.float32)[:, None] * frequency
        first, second = x[:, :half], x[:, half:]
        return torch.cat(
            [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1
        )

    def plora_linear(self, x: Tensor, is_image: Tensor, name: str) -> Tensor:
        """Apply the plain weight to every token, and add the low-rank term for image tokens."""
        plora = self.config["plora"]
        scale = plora["wqkv_alpha"] / plora["wqkv_r"] if name.endswith("wqkv") else plora["alpha"] / plora["r"]
        y = x @ self.tensors[f"{name}.weight"].T
        low = x[is_image] @ self.tensors[f"{name}.Plora_A.weight"].T
        y[is_image] += scale * (low @ self.tensors[f"{name}.Plora_B.weight"].T)
        return y

    # -- building blocks ---------------------------------------------------------------------------------------

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, eps=self.config["vision_config"]["layer_norm_eps"])

    def rms_norm(self, x: Tensor, name: str) -> Tensor:
        scale = x.pow(2).mean(-1, keepdim=True).add(self.config["rms_norm_eps"]).rsqrt()
        return x * scale * self.tensors[f"{name}.weight"]


def pixels_of(image: Image.Image, hd_num: int, side: int) -> Tensor:
    """Image -> normalised pixels [3, rows * side, cols * side], padded with white."""
    image = image.convert("RGB")
    is_tall = image.width < image.height
    if is_tall:
        image = image.transpose(Image.Transpose.TRANSPOSE)
    ratio = image.width / image.height
    scale = max(s for s in range(1, hd_num + 1) if s * math.ceil(s / ratio) <= hd_num)
    width, height = scale * side, int(scale * side / ratio)
    small = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    whole = math.ceil(height / side) * side
    top = (whole - height) // 2
    padded = np.full((whole, width, 3), 255, np.uint8)
    padded[top : top + height] = small
    if is_tall:
        padded = padded.transpose(1, 0, 2)
    pixels = torch.tensor(padded.copy()).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Return all tensors of a checkpoint: safetensors, or PyTorch shards listed in an index."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(path)
    if not tensors:
        index = json.loads((directory / "pytorch_model.bin.index.json").read_text())
        for name in sorted(set(index["weight_map"].values())):
            tensors |= torch.load(directory / name, weights_only=True)
    return tensors
