"""Checks that all networks make of their constructor's arguments."""

from cyclestyle.errors import CommandError


def check_counts(group: str, **counts: tuple[object, int, int]) -> None:
    """Raise a CommandError unless every value is a whole number in its range.

    group       of the config, `generator` or `discriminator`, for the message
    counts      name -> (value, least, most)
    """
    for name, (value, least, most) in counts.items():
        if type(value) is not int or not least <= value <= most:
            raise CommandError(f"{group}.{name} is {value!r}: expected a whole number from {least} to {most}")
