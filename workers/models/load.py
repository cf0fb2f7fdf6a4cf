"""The two models of a worker, loaded as its settings say: the one module that brings in torch and vLLM."""

import torch

from workers.models.vllm_captioner import VllmCaptioner, model_defaults
from workers.process import Models
from workers.settings import SLOTS_ON_CPU, SLOTS_ON_GPU, Settings
from workers.video.encoder import ClipEncoder


def load(settings: Settings) -> Models:
    """Load them; call on the running loop that is to drive the engine. It blocks that loop until they are ready."""
    captioner = VllmCaptioner.start(settings)  # first: it knows whether the model is of any use here
    try:
        encoder = ClipEncoder(settings.model, model_defaults(settings.model).keyframe_encoder)
    except BaseException:
        captioner.stop()
        raise
    slots = settings.slots or (SLOTS_ON_GPU if torch.cuda.is_available() else SLOTS_ON_CPU)
    return Models(captioner, encoder, slots, captioner.stop)
