"""Translation of images that are too large for memory: the generator runs on one strip of the image at a time.

A strip is a group of neighbouring rows, as wide as the image.
"""
