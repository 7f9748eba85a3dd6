"""CycleGAN training on two folders of pictures, and translation of whole photo sets."""

TYPE_CHECKING = False  # type checkers take it as true; importing the constant from `typing` would double the time
if TYPE_CHECKING:
    from cyclestyle.api import TrainingResult, load, run_evaluation, run_export, run_training
    from cyclestyle.translation import Translator

__version__ = "0.1.0"
__all__ = ["TrainingResult", "Translator", "load", "run_evaluation", "run_export", "run_training"]


def __getattr__(name: str) -> object:
    """Import a name of `__all__` on first use, since PyTorch takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("cyclestyle.translation" if name == "Translator" else "cyclestyle.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
