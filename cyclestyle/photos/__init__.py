"""Photographs as files and as values: sRGB pixels of 8 or 16 bits, alpha, what is worth keeping; and back."""

from cyclestyle.photos.formats import ENDINGS, Format, is_written, target_name
from cyclestyle.photos.photo import Metadata, Photo, fault
from cyclestyle.photos.reading import read
from cyclestyle.photos.writing import write

__all__ = ["ENDINGS", "Format", "Metadata", "Photo", "fault", "is_written", "read", "target_name", "write"]
