"""The `sharecap` command: commands of this client, and those that other installed packages register.

A package registers commands by an entry point in the group `sharecap.commands`: a function that takes the Typer
application and adds commands to it. A package whose entry point cannot be imported is left out with a note, so that
it cannot break the client.
"""

import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from sharecap_client.api import RequestFailed
from sharecap_client.cli import caption_commands
from sharecap_client.cli.errors import CommandFailed
from sharecap_client.cli.terminal import printable

COMMANDS = "sharecap.commands"
"""The entry point group."""

notes = Console(stderr=True, highlight=False)


def main() -> None:
    """Entry point of the `sharecap` command. Expected errors become one line on standard error and exit status 1."""
    try:
        create_app()()
    except (CommandFailed, RequestFailed) as error:
        notes.print(Text.assemble(("error: ", "bold red"), printable(str(error))), soft_wrap=True)
        sys.exit(1)


def create_app() -> typer.Typer:
    """Return the application with the commands of all installed packages."""
    app = typer.Typer(
        name="sharecap",
        help="Dense, temporally exact video captions, streamed.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(root)
    caption_commands.register(app)
    for entry_point in sorted(entry_points(group=COMMANDS), key=lambda entry_point: entry_point.name):
        try:
            register = entry_point.load()
        except (ImportError, AttributeError) as error:
            notes.print(f"sharecap: the commands of {entry_point.value} are not available: {error}", soft_wrap=True)
        else:
            register(app)
    return app


def root(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        print(f"sharecap {version('sharecap-client')}")
        raise typer.Exit


if __name__ == "__main__":
    main()
