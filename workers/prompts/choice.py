"""Which dialect a model is asked in."""

from workers.prompts import Dialect
from workers.prompts.hierarchical import Hierarchical
from workers.prompts.trained import Trained


def chosen_dialect(asked_for: str, *, family: bool, pictures: int) -> Dialect:
    """Return the dialect that PROMPT_DIALECT asks for; where it leaves the choice, the one of the model's `family`.

    `pictures` is how many the model takes at once.
    """
    trained = asked_for == "xcomposer2" or (asked_for == "automatic" and family)
    return Trained() if trained else Hierarchical(pictures)
