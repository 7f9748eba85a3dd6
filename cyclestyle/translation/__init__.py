"""Translation of images with one direction of a trained model, and blending with the photo."""

from cyclestyle.translation.translator import Translator

__all__ = ["Translator"]
