"""Selects the prompts for a model: the setting PROMPT_DIALECT first, then the model family's default."""

from collections.abc import Callable, Mapping
from typing import Literal

from workers.prompts.hierarchical import HierarchicalPrompts
from workers.prompts.style import PromptStyle
from workers.prompts.trained import TRAINED_PROMPTS

StyleName = Literal["xcomposer2", "hierarchical"]
PromptSetting = Literal["automatic", StyleName]
"""Values of PROMPT_DIALECT."""

PROMPT_STYLES: Mapping[StyleName, Callable[[int], PromptStyle]] = {
    "xcomposer2": lambda _images_per_turn: TRAINED_PROMPTS,
    "hierarchical": HierarchicalPrompts,
}
"""Style name -> function that returns the prompts for a number of images per turn."""


def choose_prompts(setting: PromptSetting, family_default: StyleName, images_per_turn: int) -> PromptStyle:
    """Return the prompts named by PROMPT_DIALECT; "automatic" selects the default of the model's family."""
    return PROMPT_STYLES[family_default if setting == "automatic" else setting](images_per_turn)
