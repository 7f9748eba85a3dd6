"""Run a command with the arguments in `sys.argv`, and exit with the command's exit code."""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from omegaconf import DictConfig

from cyclestyle.cli import info
from cyclestyle.cli.arguments import Flags, report, split_flags
from cyclestyle.cli.completion import candidates, script
from cyclestyle.cli.compose import check, compose, config_dir, config_folders, groups, yaml
from cyclestyle.cli.help import help_text, usage
from cyclestyle.cli.multirun import jobs, run_jobs
from cyclestyle.cli.streams import tolerant_streams
from cyclestyle.errors import CommandError, CyclestyleError, warn


def launch(command: str, run: Callable[[DictConfig], int | None]) -> None:
    """Run `command` with the arguments in `sys.argv`, and exit; the `main` of each command module calls only this.

    Args:
        run: function of the command that receives the checked config and returns the exit code; None means 0.
    """
    exit_with(command, lambda: dispatch(command, run))


def exit_with(command: str, body: Callable[[], int]) -> NoReturn:
    """Call `body` and exit with the exit code that it returns; if it raises an error, print it and exit with its code.

    If several ranks raise the same error, such as a mistyped key, one process per host prints it.
    """
    with tolerant_streams():
        try:
            code = body()
        except CyclestyleError as error:
            if error.concerns_one_rank or os.environ.get("LOCAL_RANK", "0") == "0":
                print(report(command, error), file=sys.stderr)
            code = error.code
        except KeyboardInterrupt:
            code = 130
    sys.exit(code)


def dispatch(command: str, run: Callable[[DictConfig], int | None]) -> int:
    """Print help, print the config or call `run` with the config, depending on `sys.argv`; return the exit code.

    Args:
        run: function of the command that receives the checked config and returns the exit code; None means 0.
    """
    if not sys.argv[1:]:
        print(usage(config_dir(), command), file=sys.stderr)
        return CommandError.code
    flags = split_flags(sys.argv[1:])
    if (text := answer(command, flags)) is not None:
        print(text)
        return 0

    settings: dict[str, Any] = {"config_dirs": flags.config_dirs, "report": warn if is_first_process() else ignore}
    if flags.print_config:
        print(yaml(compose(command, flags.arguments, **settings)), end="")
        return 0
    if flags.multirun:
        prefix = [word for folder in flags.config_dirs for word in ("--config-dir", folder)]
        return run_jobs(command, run, jobs(command, flags.arguments, **settings), prefix=prefix)

    cfg = compose(command, flags.arguments, **settings)
    check(cfg)
    return run(cfg) or 0


def answer(command: str, flags: Flags) -> str | None:
    """Return the text that a flag asks for; None if no flag asks for a text."""
    if flags.complete is not None:
        folders = config_folders(flags.config_dirs)
        return "\n".join(candidates(flags.complete, config_dir() / f"{command}.yaml", folders, groups(command)))
    if flags.help:
        return help_text(config_dir(), command, groups(command), folders=config_folders(flags.config_dirs))
    if flags.shell is not None:
        return script(flags.shell)
    if flags.version:
        return info.version()
    return info.describe(config_folders(flags.config_dirs)) if flags.info else None


def is_first_process() -> bool:
    """Return whether this process prints messages on behalf of all processes of the command.

    If the command starts training processes with `distributed.launch.relaunch`, only the launching process prints. If
    the user starts torchrun, only rank 0 prints.
    """
    return os.environ.get("RANK", "0") == "0" and "CYCLESTYLE_PROCESSES" not in os.environ


def ignore(line: str) -> None:
    """Discard a message, since another process of the same command prints it."""
