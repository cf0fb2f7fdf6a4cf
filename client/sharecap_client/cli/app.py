"""The `sharecap` command: this package's commands, and commands that other installed packages register.

A package registers commands through an entry point in the group `sharecap.commands`: a function that takes a Typer
application and adds commands to it. These packages are imported only for the help text and for commands that this
package does not have, so a broken server package affects neither `sharecap caption` nor its output.
"""

import re
import sys
from importlib.metadata import entry_points, version
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from sharecap_client.cli import caption_commands, job_commands
from sharecap_client.cli.errors import CommandFailed, describe
from sharecap_client.cli.terminal import printable
from sharecap_client.datasets import commands as dataset_commands
from sharecap_client.datasets.batch import command as batch_command
from sharecap_client.errors import SharecapError

ENTRY_POINT_GROUP = "sharecap.commands"
SERVER_COMMANDS = frozenset(
    ("up", "serve", "worker", "demo", "doctor", "keys", "health", "deploy", "generate", "vllm-args", "dedupe", "ray")
)
"""Commands of the server's packages, for the error if these are not installed. A test compares them."""
PANELS = {
    "Caption": ("caption", "recaption", "clip"),
    "Jobs": ("jobs", "show", "clips", "watch", "cancel", "rm"),
    "Many videos": ("batch", "ray", "export", "edit", "dedupe", "stats", "eval"),
    "Run a service": ("up", "demo", "doctor", "keys", "serve", "worker", "health", "deploy"),
    "Use the model alone": ("generate", "vllm-args"),
}
"""How the help groups the commands."""
LINE_BREAK = re.compile(r"(?<!\n)\n(?!\n)")

notes = Console(stderr=True, highlight=False)


def main() -> None:
    """Run the `sharecap` command. An expected error is printed as one line on standard error, with exit status 1."""
    try:
        create_app()()
    except (CommandFailed, SharecapError) as error:
        text = describe(error) if isinstance(error, SharecapError) else str(error)
        notes.print(Text.assemble(("error: ", "bold red"), printable(text)), soft_wrap=True)
        sys.exit(1)


class CommandGroup(TyperGroup):
    """A group of commands that loads the commands of other packages when they are first needed."""

    loaded = False

    def list_commands(self, ctx: Any) -> list[str]:
        self._load()
        for panel, names in PANELS.items():
            for name in self.commands.keys() & names:
                self.commands[name].rich_help_panel = panel  # type: ignore[attr-defined]
        order = [name for names in PANELS.values() for name in names]
        return sorted(super().list_commands(ctx), key=lambda name: order.index(name) if name in order else len(order))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            self._load()
        if cmd_name not in self.commands and cmd_name in SERVER_COMMANDS:
            raise CommandFailed(
                f"`sharecap {cmd_name}` is part of the server, which is not installed here. On the machine of the "
                "service, run `make setup` in sharecap's repository"
            )
        command = super().get_command(ctx, cmd_name)
        if command:
            join_lines(command)
        return command

    def _load(self) -> None:
        if not self.loaded:
            self.loaded = True
            self.commands.update(registered_commands())


def join_lines(command: Any) -> None:
    """Make each paragraph of the help one line, so that it is broken at the width of the terminal only."""
    if command.help:
        command.help = LINE_BREAK.sub(" ", command.help)
    for part in getattr(command, "commands", {}).values():
        join_lines(part)


def create_app() -> typer.Typer:
    """Return the application."""
    app = typer.Typer(
        cls=CommandGroup,
        name="sharecap",
        help="Dense, temporally exact video captions, streamed.\n\n"
        "`sharecap up` starts a service on this machine; `sharecap caption clip.mp4` captions a video with it.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(root)
    caption_commands.register(app)
    job_commands.register(app)
    batch_command.register(app)
    dataset_commands.register(app)
    return app


def registered_commands() -> dict[str, Any]:
    """Return the commands that other packages register, by name. A package that cannot be imported gets a note."""
    app = typer.Typer()
    app.callback()(lambda: None)  # without a callback, Typer turns a single command into the whole application
    for entry_point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry_point: entry_point.name):
        try:
            register = entry_point.load()
        except Exception as error:  # importing a broken package can raise anything
            reason = printable(str(error).partition("\n")[0]) or type(error).__name__
            notes.print(Text(f"sharecap: cannot load the commands of {entry_point.value}: {reason}"), soft_wrap=True)
        else:
            register(app)
    group = typer.main.get_group(app)
    return dict(group.commands)


def root(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        print(f"sharecap {version('sharecap-client')}")
        raise typer.Exit


if __name__ == "__main__":
    main()
