"""Calls of functions whose signatures are not known in advance, such as terms, loggers and tasks of the user's own."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the `offered` keyword arguments that the signature of `function` accepts.

    Args:
        function: function, class or other callable; with a parameter `**rest` it accepts all of them.
    """
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(offered)
    names = {
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    return {name: value for name, value in offered.items() if name in names}


def takes_positional(function: Callable[..., Any], count: int) -> bool:
    """Return whether `function` can be called with `count` positional arguments; True if its signature is unknown.

    Args:
        function: function or object with a method `__call__`; for an `nn.Module`, the signature of `forward` counts.
    """
    try:
        inspect.signature(getattr(function, "forward", function)).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a function without a readable signature, such as a built-in one
        return True
    return True
