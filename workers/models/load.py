"""Loads the two models of a worker. Only `main.py` imports this module, after it has set the engine's environment."""

import torch

from workers.models.vllm_captioner import VllmCaptioner, model_defaults
from workers.process import Models
from workers.settings import SLOTS_ON_CPU, SLOTS_ON_GPU, Settings
from workers.video.encoder import ClipEncoder


def load(settings: Settings) -> Models:
    """Load both models. Call this on the event loop that will run the engine; it blocks the loop while loading."""
    captioner = VllmCaptioner.start(settings)  # first: it detects a model that cannot caption
    try:
        encoder = ClipEncoder(settings.model, model_defaults(settings.model).keyframe_encoder)
    except BaseException:
        captioner.stop()
        raise
    slots = settings.slots or (SLOTS_ON_GPU if torch.cuda.is_available() else SLOTS_ON_CPU)
    return Models(captioner, encoder, slots, captioner.stop)
