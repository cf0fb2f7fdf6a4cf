"""Privacy of the data directory: files have mode 0600 and directories 0700, so other users of the machine see nothing.

Every process calls `keep_files_private` when it starts. Directories may be older than the process, or made by hand;
`private_directory` also corrects their mode, which protects all files in them.
"""

import os
from contextlib import suppress
from pathlib import Path

UMASK = 0o077


def keep_files_private() -> None:
    """Let only this user access files that this process and its children create from now on."""
    os.umask(UMASK)


def private_directory(path: Path) -> None:
    """Create a directory, or correct the mode of an existing one. A directory of another user stays as it is."""
    path.resolve().mkdir(parents=True, exist_ok=True)
    with suppress(PermissionError):
        path.chmod(0o777 & ~UMASK)
