"""Turns the options of a job into flags of a command, so that every option of the API is a flag.

A parameter `options` of a command is replaced by one flag for each option: `max_keyframes` becomes `--max-keyframes`,
and `start_s` becomes `--start`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from typing_extensions import get_type_hints

from sharecap_client.cli.errors import CommandFailed, flag_of

PANEL = "Options of the job (default: the service decides)"
F = TypeVar("F", bound=Callable[..., Any])


def with_options(options: type) -> Callable[[F], F]:
    """Return a decorator that replaces the parameter `options` of a command by flags for the fields of `options`."""
    flags = {name: _flag(name, hint) for name, hint in get_type_hints(options, include_extras=True).items()}

    def decorate(command: F) -> F:
        signature = inspect.signature(command)
        others = [parameter for parameter in signature.parameters.values() if parameter.name != "options"]

        @functools.wraps(command)
        def run(**arguments: Any) -> Any:
            values = {name: _value(arguments.pop(name)) for name in flags}
            chosen = {name: value for name, value in values.items() if value is not None}
            return command(**arguments, options=chosen)

        run.__signature__ = signature.replace(parameters=[*others, *flags.values()])  # type: ignore[attr-defined]
        return run  # type: ignore[return-value]

    return decorate


def _flag(name: str, hint: Any) -> inspect.Parameter:
    value_type, doc = get_args(hint)
    flag = flag_of(name)
    text, kind = doc.documentation, value_type | None
    names = [f"{flag}/--no-{flag[2:]}"] if value_type is bool else [flag]
    if get_origin(value_type) is dict:
        text, kind = f"KEY=VALUE, can be repeated. {text}", list[str] | None
    option = typer.Option(*names, help=text, rich_help_panel=PANEL, show_default=False)
    annotation: Any = Annotated[kind, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _value(value: Any) -> Any:
    """Return the value of an option, or None if the flag was not given."""
    if not isinstance(value, list):
        return value
    pairs = [text.partition("=") for text in value]
    if wrong := [key for key, separator, _ in pairs if not separator]:
        raise CommandFailed(f"{wrong[0]}: write pairs as KEY=VALUE")
    return {key: text for key, _, text in pairs} or None
