"""A check of constructor arguments, shared by all networks."""

from cyclestyle.errors import CommandError


def check_counts(group: str, **counts: tuple[object, int, int]) -> None:
    """Raise a CommandError unless every value is a whole number in its range.

    group       config group of the values, `generator` or `discriminator`; shown in the message
    counts      a tuple (value, minimum, maximum) for each argument name; both limits are allowed values
    """
    for name, (value, minimum, maximum) in counts.items():
        if type(value) is not int or not minimum <= value <= maximum:
            raise CommandError(f"{group}.{name} is {value!r}: expected a whole number from {minimum} to {maximum}")
