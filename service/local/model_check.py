"""Checks the model that a worker is about to load, so that a wrong name or a missing network is reported at once."""

from pathlib import Path

from sharecap_client.cli.errors import CommandFailed

from service.contract.model_hub import ModelUnavailable, check_hub, is_hub_id


class CannotStart(CommandFailed):
    """The service cannot start on this machine. The text says why, and what to do about it."""


def check_model(model: str | None) -> dict[str, str]:
    """Return environment variables that the worker needs to load the model. None stands for the demo model.

    Raises CannotStart if there cannot be such a model, or if it has to be downloaded and the hub cannot be reached.
    """
    if model is None or Path(model, "config.json").is_file():
        return {}
    if not is_hub_id(model):
        raise CannotStart(
            f"no model in {model}: --model takes a directory with a config.json, or a hub id (owner/name)"
        )
    try:
        return check_hub(model)
    except ModelUnavailable as error:
        raise CannotStart(str(error)) from None
