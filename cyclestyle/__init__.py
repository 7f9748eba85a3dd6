"""CycleGAN training on two folders of pictures, and translation of whole photo sets."""

__version__ = "0.1.0"
