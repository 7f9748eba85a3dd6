"""Photographs as files and as values: sRGB pixels of 8 or 16 bits, alpha, what is worth keeping; and back."""

from cyclestyle.photos.formats import ENDINGS, target_name
from cyclestyle.photos.photo import Metadata, Photo
from cyclestyle.photos.reading import read
from cyclestyle.photos.writing import write

__all__ = ["ENDINGS", "Metadata", "Photo", "read", "target_name", "write"]
