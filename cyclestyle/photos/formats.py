"""The kinds of files that can be read and written, by the endings of their names."""

from pathlib import Path
from typing import Literal

from PIL import Image

from cyclestyle import images


def _register_heif() -> bool:
    """Whether HEIC files can be opened."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


HAS_HEIF = _register_heif()
READ = (*images.FORMATS, *(("HEIF",) if HAS_HEIF else ()))  # by Pillow's names

BY_ENDING = {  # and their own names
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WebP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
    ".gif": "GIF", ".avif": "AVIF", ".heic": "HEIC", ".heif": "HEIC",
}  # fmt: skip
ENDINGS = frozenset(ending for ending, name in BY_ENDING.items() if HAS_HEIF or name != "HEIC")

_OWN_NAMES = {"WEBP": "WebP", "HEIF": "HEIC", "MPO": "JPEG"}
_NOT_WRITTEN = {"GIF"} | (set() if "HEIF" in Image.SAVE else {"HEIC"})
_ASKED_FOR = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP"}
_FIRST_ENDING = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp"}


def own_name(pillow_name: str) -> str:
    """A format's name as people write it."""
    return _OWN_NAMES.get(pillow_name, pillow_name)


def is_written(ending: str) -> bool:
    """Whether files whose lower-case ending it is can be written."""
    return ending in BY_ENDING and BY_ENDING[ending] not in _NOT_WRITTEN


def target_name(name: Path, format: Literal["keep", "png", "jpeg", "webp"]) -> Path:  # noqa: A002
    """The name under which a picture is written; nothing is read for it.

    Args:
        format: `keep` is the one that its ending says, PNG if that cannot be written (GIF, HEIC without an encoder).
    """
    ending = name.suffix.lower()
    wanted = _ASKED_FOR.get(format, BY_ENDING[ending] if is_written(ending) else "PNG")
    return name if BY_ENDING.get(ending) == wanted else name.with_suffix(_FIRST_ENDING[wanted])
