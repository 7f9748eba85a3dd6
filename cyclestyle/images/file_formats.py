"""Image formats that can be read or written, and the file name extensions that belong to them."""

from pathlib import Path
from typing import Literal

from PIL import Image

from cyclestyle.images import decoding


def _register_heif() -> bool:
    """Register the HEIC decoder in Pillow; return False if the package `pillow_heif` is not installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


HAS_HEIF = _register_heif()
READ = (*decoding.FORMATS, "JPEG2000", *(("HEIF",) if HAS_HEIF else ()))  # readable formats, by Pillow's names

BY_ENDING = {  # extension -> common name
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".mpo": "JPEG",
    ".png": "PNG", ".webp": "WebP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
    ".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".jpx": "JPEG 2000",
    ".gif": "GIF", ".avif": "AVIF", ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC",
}  # fmt: skip
ALL_ENDINGS = frozenset(BY_ENDING)
ENDINGS = frozenset(ending for ending, name in BY_ENDING.items() if HAS_HEIF or name != "HEIC")

_OWN_NAMES = {"WEBP": "WebP", "JPEG2000": "JPEG 2000", "HEIF": "HEIC", "MPO": "JPEG"}
_NOT_WRITTEN = {"GIF", "JPEG 2000"} | (set() if "HEIF" in Image.SAVE else {"HEIC"})
# Formats that format=keep replaces: GIF and JPEG 2000 are not written, and encoding HEIC takes half a minute.
_KEPT_AS = {"GIF": "PNG", "JPEG 2000": "PNG", "HEIC": "JPEG"}
_REQUESTED = {"png": "PNG", "jpeg": "JPEG", "webp": "WebP", "tiff": "TIFF", "avif": "AVIF", "heic": "HEIC"}
_READ_ONLY_ENDINGS = {".mpo"}  # an MPO file has further images, which translations do not have
_FIRST_ENDING = {"PNG": ".png", "JPEG": ".jpg", "WebP": ".webp", "TIFF": ".tif", "AVIF": ".avif", "HEIC": ".heic"}

Format = Literal["keep", "png", "jpeg", "webp", "tiff", "avif", "heic"]
HEIC_AS_JPEG = "HEIC is written as JPEG: format=heic keeps it"


def own_name(pillow_name: str) -> str:
    """Return the common name of the format that Pillow calls `pillow_name`, such as `WebP` for `WEBP`."""
    return _OWN_NAMES.get(pillow_name, pillow_name)


def pillow_name(name: str) -> str:
    """Return Pillow's name for the format with the common name `name`, such as `WEBP` for `WebP`."""
    return {"WebP": "WEBP", "HEIC": "HEIF", "JPEG 2000": "JPEG2000"}.get(name, name)


def is_written(ending: str) -> bool:
    """Return whether files with the extension `ending` can be written; `ending` is in lower case, such as `.png`."""
    return ending in BY_ENDING and BY_ENDING[ending] not in _NOT_WRITTEN and ending not in _READ_ONLY_ENDINGS


def target_name(name: Path, format: Format) -> Path:  # noqa: A002
    """Return `name`, the name of an input file, with an extension of the output format.

    An extension that belongs to the output format is kept, except `.mpo`. The input file is not read; its format is
    inferred from its extension.

    Args:
        format: output format. `keep` selects the format that belongs to the extension of `name`, but replaces GIF and
            JPEG 2000 by PNG, and HEIC by JPEG.
    """
    ending = name.suffix.lower()
    source = BY_ENDING.get(ending, "PNG")
    target = _REQUESTED.get(format) or _KEPT_AS.get(source, source)
    is_kept = BY_ENDING.get(ending) == target and ending not in _READ_ONLY_ENDINGS
    return name if is_kept else name.with_suffix(_FIRST_ENDING[target])


def becomes_jpeg(name: Path, format: Format) -> bool:  # noqa: A002
    """Return whether `name` has a HEIC extension and `format` is `keep`, so that the output file is a JPEG."""
    return format == "keep" and BY_ENDING.get(name.suffix.lower()) == "HEIC"
