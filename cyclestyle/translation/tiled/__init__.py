"""Translation of images that are too large for memory: the generator runs on the image strip by strip."""
