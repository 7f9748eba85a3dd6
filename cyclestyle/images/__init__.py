"""Image files and image values: decoding, colour, bit depth, metadata, encoding."""
