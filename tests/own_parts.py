"""A part that a user might write, outside the table of networks."""

from cyclestyle.networks import ResNetGenerator


class OwnGenerator(ResNetGenerator):
    """Trains like any other, and has no name in model files."""
