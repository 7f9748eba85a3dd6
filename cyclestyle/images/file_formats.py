"""The kinds of files that can be read and written, by the endings of their names."""

from pathlib import Path
from typing import Literal

from PIL import Image

from cyclestyle.images import decoding


def _register_heif() -> bool:
    """Whether HEIC files can be opened."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


HAS_HEIF = _register_heif()
READ = (*decoding.FORMATS, *(("HEIF",) if HAS_HEIF else ()))  # by Pillow's names

BY_ENDING = {  # and their own names
    ".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WebP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
    ".gif": "GIF", ".avif": "AVIF", ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC",
}  # fmt: skip
ENDINGS = frozenset(ending for ending, name in BY_ENDING.items() if HAS_HEIF or name != "HEIC")

_OWN_NAMES = {"WEBP": "WebP", "HEIF": "HEIC", "MPO": "JPEG"}
_NOT_WRITTEN = {"GIF"} | (set() if "HEIF" in Image.SAVE else {"HEIC"})
_KEPT_AS = {"GIF": "PNG", "HEIC": "JPEG"}  # what is read only, or takes half a minute to encode
_ASKED_FOR = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP", "heic": "HEIC"}
_FIRST_ENDING = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp", "HEIC": ".heic"}

Format = Literal["keep", "png", "jpeg", "webp", "heic"]
HEIC_AS_JPEG = "HEIC is written as JPEG: format=heic keeps it"


def own_name(pillow_name: str) -> str:
    """A format's name as people write it."""
    return _OWN_NAMES.get(pillow_name, pillow_name)


def pillow_name(name: str) -> str:
    """Pillow's name of a format that is written."""
    return {"WebP": "WEBP", "HEIC": "HEIF"}.get(name, name)


def is_written(ending: str) -> bool:
    """Whether files whose lower-case ending it is can be written."""
    return ending in BY_ENDING and BY_ENDING[ending] not in _NOT_WRITTEN


def target_name(name: Path, format: Format) -> Path:  # noqa: A002
    """The name under which a picture is written; nothing is read for it.

    Args:
        format: `keep` is the one of its ending, but PNG for GIF and JPEG for HEIC.
    """
    ending = name.suffix.lower()
    found = BY_ENDING.get(ending, "PNG")
    wanted = _ASKED_FOR.get(format) or _KEPT_AS.get(found, found)
    return name if BY_ENDING.get(ending) == wanted else name.with_suffix(_FIRST_ENDING[wanted])


def becomes_jpeg(name: Path, format: Format) -> bool:  # noqa: A002
    """Whether a picture is written as JPEG though it is named as a HEIC and JPEG was not asked for."""
    return format == "keep" and BY_ENDING.get(name.suffix.lower()) == "HEIC"
