"""The cache folder: results of image inspection, pretrained weights and features of image sets.

The program can compute or fetch all these files again.
"""

import os
from pathlib import Path

from cyclestyle.errors import CommandError


def cache_folder() -> Path:
    """Return the cache folder, which may not exist.

    The folder is `$CYCLESTYLE_CACHE` if the variable is set, else `cyclestyle` in `$XDG_CACHE_HOME`, else
    `~/.cache/cyclestyle`. Relative paths in `XDG_CACHE_HOME` are ignored, as its specification demands.

    Raises:
        CommandError: no variable is set, and the user has no home folder.
    """
    if chosen := os.environ.get("CYCLESTYLE_CACHE"):
        return Path(chosen).expanduser().absolute()
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (configured if configured.is_absolute() else Path.home() / ".cache") / "cyclestyle"
    except RuntimeError:
        raise CommandError("this user has no home folder for the cache: set CYCLESTYLE_CACHE to a folder") from None
