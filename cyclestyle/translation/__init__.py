"""Translation of images with one direction of a trained model, and blending of photos with their translations."""

from cyclestyle.translation.translator import Translator

__all__ = ["Translator"]
