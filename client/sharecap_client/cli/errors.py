"""The error that ends a command."""


class CommandFailed(Exception):
    """Ends the command with exit status 1 and this text on standard error. The text says what to do next."""
