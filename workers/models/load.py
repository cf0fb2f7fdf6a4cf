"""Loads the two models of a worker. Only `main.py` imports this module, after it has set the engine's environment."""

import torch

from workers.models.vllm_captioner import VllmCaptioner, model_defaults
from workers.process import Models
from workers.settings import KEY_SEQUENCES_ON_CPU, KEY_SEQUENCES_ON_GPU, SLOTS_ON_CPU, SLOTS_ON_GPU, Settings
from workers.video.encoder import ClipEncoder


def load(settings: Settings) -> Models:
    """Load both models. Call this on the event loop that will run the engine; it blocks the loop while loading."""
    captioner = VllmCaptioner.start(settings)  # first: it detects a model that cannot caption
    try:
        defaults = model_defaults(settings.model)
        encoder = ClipEncoder(settings.model, defaults.keyframe_encoder)
    except BaseException:
        captioner.stop()
        raise
    on_gpu = torch.cuda.is_available()
    slots = settings.slots or (SLOTS_ON_GPU if on_gpu else SLOTS_ON_CPU)
    key_sequences = settings.key_sequences or (KEY_SEQUENCES_ON_GPU if on_gpu else KEY_SEQUENCES_ON_CPU)
    return Models(captioner, encoder, slots, captioner.stop, key_sequences, defaults.demonstration)
