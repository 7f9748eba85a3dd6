"""Run a command with the arguments in `sys.argv`, and exit with the command's exit code."""

import sys
from collections.abc import Callable

from omegaconf import DictConfig

from cyclestyle.cli.arguments import report, split_flags
from cyclestyle.cli.compose import check, compose, config_dir, groups, yaml
from cyclestyle.cli.help import help_text, usage
from cyclestyle.cli.multirun import jobs, run_jobs
from cyclestyle.errors import CommandError, CyclestyleError


def launch(command: str, run: Callable[[DictConfig], int | None]) -> None:
    """Run `command` with the arguments in `sys.argv`, and exit; the `main` of each command module calls only this."""
    try:
        code = dispatch(command, run)
    except CyclestyleError as error:
        print(report(command, error), file=sys.stderr)
        code = error.code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def dispatch(command: str, run: Callable[[DictConfig], int | None]) -> int:
    """Print help, print the config or call `run` with the config, depending on `sys.argv`; return the exit code."""
    if not sys.argv[1:]:
        print(usage(config_dir(), command), file=sys.stderr)
        return CommandError.code
    flags = split_flags(sys.argv[1:])

    if flags.help:
        print(help_text(config_dir(), command, groups(command)))
        return 0
    if flags.print_config:
        print(yaml(compose(command, flags.arguments)), end="")
        return 0
    if flags.multirun:
        return run_jobs(command, run, jobs(command, flags.arguments))

    cfg = compose(command, flags.arguments)
    check(cfg)
    return run(cfg) or 0
