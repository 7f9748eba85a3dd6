"""From a trained checkpoint to pictures: one by one, or whole photo sets."""

from cyclestyle.translation.translator import Translator

__all__ = ["Translator"]
