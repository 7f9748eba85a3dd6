"""Image files and pixel values: decoding, colour conversion, bit depth, metadata, encoding."""
