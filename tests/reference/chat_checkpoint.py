"""A random tiny chat model of an architecture that vLLM supports: Idefics3, whose image tokens depend on image size.

It has the usual Hugging Face layout: configuration, weights, a tokenizer trained here, processor and chat template.
`python -m tests.reference.chat_checkpoint DIRECTORY` writes one for experiments.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from workers.prompts.hierarchical import HierarchicalPrompts

OPEN, CLOSE, IMAGE, PAD = "<|im_start|>", "<|im_end|>", "<image>", "<pad>"
TILES = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
TILES += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
CROP_PX, PATCH_PX, MERGE = 56, 14, 2
TOKENS_PER_CROP = (CROP_PX // PATCH_PX // MERGE) ** 2
LONGEST_PX = 2 * CROP_PX
CONTEXT_TOKENS = 2048
TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>
{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": CROP_PX,
    "patch_size": PATCH_PX,
}
PROMPTS = HierarchicalPrompts(2)
LINES = [
    PROMPTS.differential(3, 4.0, 6.5, "The red circle moves left."),
    PROMPTS.summary([(0.0, "A star."), (12.25, "It leaves.")]),
    PROMPTS.recaption("a quick brown fox"),
    PROMPTS.fast([0.0, 1.5]),
]


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with chat tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special_tokens = [OPEN, CLOSE, IMAGE, PAD, *TILES]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=special_tokens, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(LINES * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=CLOSE, pad_token=PAD, additional_special_tokens=[OPEN, IMAGE, *TILES]
    )


def write_chat_checkpoint(directory: Path, seed: int = 0) -> Path:
    """Write the checkpoint, including a keyframe encoder. Returns its directory."""
    torch.manual_seed(seed)
    chat_tokenizer = tokenizer()
    text = LlamaConfig(
        vocab_size=len(chat_tokenizer),
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=chat_tokenizer.convert_tokens_to_ids(CLOSE),
        pad_token_id=chat_tokenizer.convert_tokens_to_ids(PAD),
    )
    config = Idefics3Config(
        vision_config=VISION,
        text_config=text,
        scale_factor=MERGE,
        image_token_id=chat_tokenizer.convert_tokens_to_ids(IMAGE),
        pad_token_id=text.pad_token_id,
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(directory)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": LONGEST_PX}, max_image_size={"longest_edge": CROP_PX}, do_image_splitting=True
    )
    Idefics3Processor(images, chat_tokenizer, image_seq_len=TOKENS_PER_CROP, chat_template=TEMPLATE).save_pretrained(
        directory
    )
    published = json.loads((directory / "config.json").read_text())
    published["sharecap"] = {"keyframe_encoder": "keyframe_encoder", "similarity_threshold": 0.9999}
    (directory / "config.json").write_text(json.dumps(published))
    write_encoder(directory / "keyframe_encoder", CLIPVisionConfig(**VISION, projection_dim=64))
    return directory


def write_text_checkpoint(directory: Path) -> Path:
    """Write a chat model that takes no images, without weights: only the files that a worker reads first."""
    chat_tokenizer = tokenizer()
    chat_tokenizer.chat_template = TEMPLATE
    chat_tokenizer.save_pretrained(directory)
    LlamaConfig(vocab_size=len(chat_tokenizer), architectures=["LlamaForCausalLM"]).save_pretrained(directory)
    return directory


def write_encoder(directory: Path, config: CLIPVisionConfig) -> None:
    CLIPVisionModel(config).save_pretrained(directory)
    preprocessor = {
        "size": {"height": CROP_PX, "width": CROP_PX},
        "do_center_crop": False,
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))


if __name__ == "__main__":
    write_chat_checkpoint(Path(sys.argv[1]))
