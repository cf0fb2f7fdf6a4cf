"""The error that a command ends with."""


class CommandFailed(Exception):
    """Ends the command with this text on standard error and exit status 1. The text says what to do next."""
