"""Names and shapes of a checkpoint's published tensors, and the check of the tensors that are loaded.

Used by `model.py`. Shapes are those on disk, before any tensor parallelism. A quantised checkpoint contains other
tensors instead of the weights of the language model's linear layers.
"""

from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from workers.xcomposer2.config import MERGE, XComposer2Config

Shape = tuple[int, ...]

# Tensors that some checkpoints contain but no forward pass uses: CLIP's final norm (features are taken before it) and
# buffers saved by older libraries.
_UNUSED_SUFFIXES = ("post_layernorm.weight", "post_layernorm.bias", ".position_ids", ".rotary_emb.inv_freq")


def is_unused(name: str) -> bool:
    """Return whether a tensor with this name is allowed but ignored."""
    return name.endswith(_UNUSED_SUFFIXES)


def published_shapes(config: XComposer2Config) -> dict[str, Shape]:
    """Return name -> shape of every tensor that an unquantised checkpoint must contain."""
    return dict([*_language_model(config), *_vision_tower(config), *_connector(config)])


def expected_shapes(config: XComposer2Config, quantised: Mapping[str, Collection[str]]) -> Mapping[str, Shape | None]:
    """Return name -> shape of every tensor that a checkpoint must contain.

    `quantised` maps the name of a quantised linear layer to the names of its tensors, such as `qweight`. They replace
    `weight`. Their shape is None, because only the layer knows it.
    """
    shapes: dict[str, Shape | None] = {**published_shapes(config)}
    for layer, names in quantised.items():
        weight = shapes.pop(f"{layer}.weight")
        shapes |= {f"{layer}.{name}": weight if name == "weight" else None for name in names}
    return shapes


def check_tensors(
    weights: "Iterator[tuple[str, Tensor]]", shapes: Mapping[str, Shape | None]
) -> "Iterator[tuple[str, Tensor]]":
    """Yield the used tensors in file order. Raises ValueError for an unknown, misshapen or missing tensor."""
    seen: set[str] = set()
    for name, tensor in weights:
        if is_unused(name):
            continue
        if name not in shapes:
            raise ValueError(f"checkpoint: unexpected tensor {name}")
        shape = shapes[name]
        if shape is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"checkpoint: {name} has shape {list(tensor.shape)}, expected {list(shape)}")
        seen.add(name)
        yield name, tensor
    missing = [name for name in shapes if name not in seen]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(f"checkpoint: missing tensor {', '.join(missing[:3])}{more}")


def _language_model(config: XComposer2Config) -> Iterator[tuple[str, Shape]]:
    hidden, inner, vocab = config.hidden_size, config.intermediate_size, config.published_vocab_size
    qkv = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    rank, wqkv_rank = config.plora["r"], config.plora["wqkv_r"]
    yield "model.tok_embeddings.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    yield "output.weight", (vocab, hidden)
    linears = {
        "attention.wqkv": (qkv, hidden, wqkv_rank),
        "attention.wo": (hidden, config.num_attention_heads * config.head_dim, rank),
        "feed_forward.w1": (inner, hidden, rank),
        "feed_forward.w2": (hidden, inner, rank),
        "feed_forward.w3": (inner, hidden, rank),
    }
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.attention_norm.weight", (hidden,)
        yield f"{prefix}.ffn_norm.weight", (hidden,)
        for name, (outputs, inputs, r) in linears.items():
            yield f"{prefix}.{name}.weight", (outputs, inputs)
            yield f"{prefix}.{name}.Plora_A.weight", (r, inputs)
            yield f"{prefix}.{name}.Plora_B.weight", (outputs, r)


def _vision_tower(config: XComposer2Config) -> Iterator[tuple[str, Shape]]:
    vision = config.vision_config
    hidden, inner = vision.hidden_size, vision.intermediate_size
    prefix = "vit.vision_tower.vision_model"
    positions = (vision.image_size // vision.patch_size) ** 2 + 1
    yield f"{prefix}.embeddings.class_embedding", (hidden,)
    yield f"{prefix}.embeddings.patch_embedding.weight", (hidden, 3, vision.patch_size, vision.patch_size)
    yield f"{prefix}.embeddings.position_embedding.weight", (positions, hidden)
    norms = ["pre_layrnorm"]
    for layer in range(vision.num_hidden_layers):
        block = f"encoder.layers.{layer}"
        norms += [f"{block}.layer_norm1", f"{block}.layer_norm2"]
        linears = {f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
        linears |= {"mlp.fc1": (inner, hidden), "mlp.fc2": (hidden, inner)}
        for name, shape in linears.items():
            yield f"{prefix}.{block}.{name}.weight", shape
            yield f"{prefix}.{block}.{name}.bias", shape[:1]
    for norm in norms:
        yield f"{prefix}.{norm}.weight", (hidden,)
        yield f"{prefix}.{norm}.bias", (hidden,)


def _connector(config: XComposer2Config) -> Iterator[tuple[str, Shape]]:
    merged, hidden = config.vision_config.hidden_size * MERGE**2, config.hidden_size
    yield "vision_proj.0.weight", (hidden, merged)
    yield "vision_proj.0.bias", (hidden,)
    yield "vision_proj.2.weight", (hidden, hidden)
    yield "vision_proj.2.bias", (hidden,)
    yield "plora_glb_GN", (1, 1, merged)
    yield "plora_sub_GN", (1, 1, 1, merged)
