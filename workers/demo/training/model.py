"""The demo model in plain, batched, trainable PyTorch: a small InternLM-XComposer2-4KHD.

Parameters have the published checkpoint's names, so `state_dict()` is the checkpoint. Reading order: vision tower ->
merge and project -> separators -> InternLM2 with partial LoRA. Formulas: InternLM2, CLIP's ViT, and the partial LoRA
of InternLM-XComposer2 (arXiv:2401.16420).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """All sizes of the model. `config()` in export.py writes them under the published names."""

    crop: int = 112
    patch: int = 14
    vision_hidden: int = 128
    vision_layers: int = 5
    vision_heads: int = 4
    vision_mlp: int = 512
    hidden: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    mlp: int = 512
    vocabulary: int = 1024
    rope_theta: float = 10000.0
    plora_r: int = 16
    plora_alpha: int = 16
    plora_wqkv_r: int = 8
    plora_wqkv_alpha: int = 16
    norm_eps: float = 1e-5

    @property
    def grid(self) -> int:
        """Number of patches along a crop's side."""
        return self.crop // self.patch

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


class VisionEmbeddings(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(sizes.vision_hidden) * 0.02)
        self.patch_embedding = nn.Conv2d(3, sizes.vision_hidden, sizes.patch, sizes.patch, bias=False)
        self.position_embedding = nn.Embedding(sizes.grid**2 + 1, sizes.vision_hidden)
        nn.init.normal_(self.position_embedding.weight, std=0.1)
        self.patch, self.grid = sizes.patch, sizes.grid

    def forward(self, pixels: Tensor) -> Tensor:
        """Map `[crops, 3, side, side]` to `[crops, 1 + grid², vision_hidden]`."""
        crops, p, g = len(pixels), self.patch, self.grid
        patches = pixels.view(crops, 3, g, p, g, p).permute(0, 2, 4, 1, 3, 5).reshape(crops, g * g, -1)
        x = F.linear(patches, self.patch_embedding.weight.flatten(1))
        return torch.cat([self.class_embedding.expand(crops, 1, -1), x], 1) + self.position_embedding.weight


class VisionAttention(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.vision_hidden
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.heads = sizes.vision_heads

    def forward(self, x: Tensor) -> Tensor:
        crops, length, width = x.shape
        weight = torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])
        bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        qkv = F.linear(x, weight, bias).view(crops, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])  # [crops, heads, length, head_dim]
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(crops, length, width))
        return out


class VisionMLP(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.vision_hidden, sizes.vision_mlp)
        self.fc2 = nn.Linear(sizes.vision_mlp, sizes.vision_hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        out: Tensor = self.fc2(x * torch.sigmoid(1.702 * x))  # quick_gelu
        return out


class VisionLayer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(sizes.vision_hidden), nn.LayerNorm(sizes.vision_hidden)
        self.self_attn, self.mlp = VisionAttention(sizes), VisionMLP(sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Layers(nn.Module):
    """A list of modules under the published name `layers`."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class VisionModel(nn.Module):
    """CLIP's image encoder. Returns the last layer's patch features, without the post-norm."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(sizes)
        self.pre_layrnorm = nn.LayerNorm(sizes.vision_hidden)
        self.encoder = Layers([VisionLayer(sizes) for _ in range(sizes.vision_layers)])
        self.post_layernorm = nn.LayerNorm(sizes.vision_hidden)  # in the published file, but unused

    def forward(self, pixels: Tensor) -> Tensor:
        """Map `[crops, 3, side, side]` to `[crops, grid², vision_hidden]`."""
        x: Tensor = self.pre_layrnorm(self.embeddings(pixels))
        for layer in self.encoder.layers:
            x = layer(x)
        return x[:, 1:]


def merge(patches: Tensor) -> Tensor:
    """Concatenate each 2x2 block of patches in row order: `[crops, g², d]` to `[crops, (g/2)², 4·d]`."""
    crops, count, width = patches.shape
    half = math.isqrt(count) // 2
    x = patches.view(crops, half, 2, half, 2, width).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(crops, half * half, 4 * width)


class PartialLoRALinear(nn.Module):
    """A linear map with a low-rank update that applies to image tokens only."""

    def __init__(self, width: int, out: int, rank: int, alpha: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, width) / math.sqrt(width))
        self.Plora_A, self.Plora_B = nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=False)
        nn.init.zeros_(self.Plora_B.weight)
        self.scale = alpha / rank

    def forward(self, x: Tensor, image: bool) -> Tensor:
        """Map `[batch, length, width]` to `[batch, length, out]`. All tokens are of one kind, text or image."""
        return F.linear(
            x, self.weight + self.scale * self.Plora_B.weight @ self.Plora_A.weight if image else self.weight
        )


@dataclass(frozen=True)
class Tokens:
    """Text and image tokens of a sequence, separate for partial LoRA. The image follows `<s>`, the first text token."""

    text: Tensor  # [batch, 1 + words, width]
    image: Tensor | None = None  # [batch, n, width]

    def joined(self) -> Tensor:
        """Return all tokens in sequence order: `[batch, length, width]`."""
        if self.image is None:
            return self.text
        first, rest = torch.split_with_sizes(self.text, [1, self.text.shape[1] - 1], 1)
        return torch.cat([first, self.image, rest], 1)

    def split(self, joined: Tensor) -> "Tokens":
        """Split a sequence of this layout into its text and image tokens."""
        if self.image is None:
            return Tokens(joined)
        sizes = [1, self.image.shape[1], self.text.shape[1] - 1]
        first, image, rest = torch.split_with_sizes(joined, sizes, 1)
        return Tokens(torch.cat([first, rest], 1), image)

    def __add__(self, other: "Tokens") -> "Tokens":
        if self.image is None or other.image is None:
            return Tokens(self.text + other.text)
        return Tokens(self.text + other.text, self.image + other.image)

    def map_kinds(self, layer: Callable[[Tensor, bool], Tensor]) -> "Tokens":
        """Apply `layer(tokens, is_image)` to the text tokens and to the image tokens."""
        return Tokens(layer(self.text, False), None if self.image is None else layer(self.image, True))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to `x` `[batch, heads, length, head_dim]`; `cos` and `sin` are `[length, head_dim]`."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal attention over `[batch, heads, length, head_dim]`.

    In bfloat16 on a CPU its gradient takes less time than that of PyTorch's own attention.
    """
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    future = torch.full(scores.shape[-2:], -1e4, dtype=scores.dtype, device=scores.device).triu(1)
    mixed: Tensor = (scores + future).softmax(-1).to(v.dtype) @ v
    return mixed


class Attention(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        s = sizes
        out = (s.heads + 2 * s.kv_heads) * s.head_dim
        self.wqkv = PartialLoRALinear(s.hidden, out, s.plora_wqkv_r, s.plora_wqkv_alpha)
        self.wo = PartialLoRALinear(s.hidden, s.hidden, s.plora_r, s.plora_alpha)
        self.heads, self.kv_heads, self.head_dim = s.heads, s.kv_heads, s.head_dim

    def forward(self, x: Tokens, rope: tuple[Tensor, Tensor], cache: list[Tensor] | None) -> Tokens:
        group = self.heads // self.kv_heads
        qkv = x.map_kinds(self.wqkv).joined()
        batch, length, _ = qkv.shape
        qkv = qkv.view(batch, length, self.kv_heads, group + 2, self.head_dim)
        q, k, v = torch.split_with_sizes(qkv, [group, 1, 1], 3)
        q = rotate(q.reshape(batch, length, self.heads, self.head_dim).transpose(1, 2), *rope)
        k, v = rotate(k.squeeze(3).transpose(1, 2), *rope), v.squeeze(3).transpose(1, 2)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 2), torch.cat([cache[1], v], 2)
            cache[:] = [k, v]
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if self.training and length > 1:
            mixed = causal_attention(q, k, v)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        return x.split(mixed.transpose(1, 2).reshape(batch, length, -1)).map_kinds(self.wo)


class FeedForward(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        s = sizes
        self.w1 = PartialLoRALinear(s.hidden, s.mlp, s.plora_r, s.plora_alpha)
        self.w3 = PartialLoRALinear(s.hidden, s.mlp, s.plora_r, s.plora_alpha)
        self.w2 = PartialLoRALinear(s.mlp, s.hidden, s.plora_r, s.plora_alpha)

    def forward(self, x: Tensor, image: bool) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x, image)) * self.w3(x, image), image)
        return out


class DecoderLayer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(sizes.hidden, sizes.norm_eps)
        self.ffn_norm = nn.RMSNorm(sizes.hidden, sizes.norm_eps)
        self.attention, self.feed_forward = Attention(sizes), FeedForward(sizes)
        self.fed: tuple[bool, ...] = (False, True)  # kinds with a feed-forward output: text (False), image (True)

    def forward(self, x: Tokens, rope: tuple[Tensor, Tensor], cache: list[Tensor] | None) -> Tokens:
        x = x + self.attention(x.map_kinds(lambda part, _: self.attention_norm(part)), rope, cache)
        return x + x.map_kinds(self.fed_forward)

    def fed_forward(self, x: Tensor, image: bool) -> Tensor:
        if image not in self.fed:
            return torch.zeros_like(x)
        out: Tensor = self.feed_forward(self.ffn_norm(x), image)
        return out


class LanguageModel(Layers):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__([DecoderLayer(sizes) for _ in range(sizes.layers)])
        self.tok_embeddings = nn.Embedding(sizes.vocabulary, sizes.hidden)
        nn.init.normal_(self.tok_embeddings.weight, std=0.5)
        self.norm = nn.RMSNorm(sizes.hidden, sizes.norm_eps)


class Tower(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.vision_model = VisionModel(sizes)


class Vit(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.vision_tower = Tower(sizes)


class DemoModel(nn.Module):
    """The complete model. `state_dict()` has the published names."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.model = LanguageModel(sizes)
        self.output = nn.Linear(sizes.hidden, sizes.vocabulary, bias=False)
        nn.init.normal_(self.output.weight, std=0.02)
        self.vit = Vit(sizes)
        merged = 4 * sizes.vision_hidden
        self.vision_proj = nn.Sequential(
            nn.Linear(merged, sizes.hidden), nn.GELU(), nn.Linear(sizes.hidden, sizes.hidden)
        )
        self.plora_glb_GN = nn.Parameter(torch.randn(1, 1, merged) * 0.5)
        self.plora_sub_GN = nn.Parameter(torch.randn(1, 1, 1, merged) * 0.5)

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return patch features `[crops, grid², d]` and merged features `[crops, (grid/2)², 4·d]` of crops."""
        patches = self.vit.vision_tower.vision_model(pixels)
        return patches, merge(patches)

    def rows(self, x: Tensor) -> Tensor:
        """Append the projected row separator to each row of `[batch, h, w, hidden]`, and join the rows."""
        batch, height, _, width = x.shape
        return torch.cat([x, self.vision_proj(self.plora_sub_GN).expand(batch, height, 1, width)], 2).flatten(1, 2)

    def image_tokens(self, views: Tensor, tiles: Tensor) -> Tensor:
        """Return the projected image tokens `[batch, n, hidden]`.

        `views` are global views `[batch, m², 4·d]`, `tiles` are `[batch, h, w, m², 4·d]`.
        """
        return self.arranged(self.vision_proj(views), self.vision_proj(tiles))

    def arranged(self, views: Tensor, tiles: Tensor) -> Tensor:
        """Return the image tokens of views and tiles that are already projected; see `image_tokens`."""
        batch, h, w, count, width = tiles.shape
        m = math.isqrt(count)
        grid = tiles.view(batch, h, w, m, m, width).permute(0, 1, 3, 2, 4, 5).reshape(batch, h * m, w * m, width)
        end_of_view = self.vision_proj(self.plora_glb_GN).expand(batch, 1, width)
        return torch.cat([self.rows(views.view(batch, m, m, width)), end_of_view, self.rows(grid)], 1)

    def rope(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        half = self.sizes.head_dim // 2
        device = self.output.weight.device
        frequency = self.sizes.rope_theta ** (-torch.arange(half, dtype=torch.float32, device=device) / half)
        angle = torch.arange(start, start + length, dtype=torch.float32, device=device)[:, None] * frequency
        return torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()

    def layer_outputs(
        self, ids: Tensor, image: Tensor | None = None, start: int = 0, caches: list[list[Tensor]] | None = None
    ) -> list[Tokens]:
        """Return the output of every layer for the texts `ids` `[batch, length]`.

        `image` `[batch, n, hidden]` follows the first token. `start` is the position of the first token; `caches`
        holds keys and values of earlier positions, one list per layer.
        """
        tokens = Tokens(self.model.tok_embeddings(ids), image)
        return self.outputs_between(tokens, 0, self.sizes.layers, start, caches)

    def outputs_between(
        self, x: Tokens, first: int, end: int, start: int = 0, caches: list[list[Tensor]] | None = None
    ) -> list[Tokens]:
        """Return the outputs of the layers `first` to `end - 1`. `x` is the input of layer `first`."""
        rope = self.rope(start, x.text.shape[1] + (0 if x.image is None else x.image.shape[1]))
        outputs = []
        for index, layer in enumerate(islice(self.model.layers, first, end), start=first):
            x = layer(x, rope, None if caches is None else caches[index])
            outputs.append(x)
        return outputs

    def hidden(
        self, ids: Tensor, image: Tensor | None = None, start: int = 0, caches: list[list[Tensor]] | None = None
    ) -> Tensor:
        """Return the final normed states of the text tokens: `[batch, length, hidden]`. See `layer_outputs`."""
        normed: Tensor = self.model.norm(self.layer_outputs(ids, image, start, caches)[-1].text)
        return normed

    @torch.no_grad()
    def greedy(self, ids: Tensor, image: Tensor | None, ends: set[int], max_tokens: int) -> list[list[int]]:
        """Continue prompts of equal length `[batch, length]` greedily.

        Each answer ends with a token of `ends`, unless it was cut at `max_tokens`.
        """
        caches: list[list[Tensor]] = [[] for _ in self.model.layers]
        answers: list[list[int]] = [[] for _ in ids]
        unfinished = set(range(len(ids)))
        step, start = ids, 0
        for _ in range(max_tokens):
            states = self.hidden(step, image if start == 0 else None, start, caches)
            start += states.shape[1] + (image.shape[1] if image is not None and start == 0 else 0)
            step = self.output(states[:, -1]).argmax(-1, keepdim=True)
            for row in list(unfinished):
                answers[row].append(int(step[row]))
                if answers[row][-1] in ends:
                    unfinished.remove(row)
            if not unfinished:
                break
        return answers
