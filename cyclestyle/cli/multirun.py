"""Implementation of `--multirun`: train once for each combination of values, one run after the other."""

import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, get_type_hints

from omegaconf import DictConfig

from cyclestyle.cli.arguments import Argument, split
from cyclestyle.cli.compose import SCHEMAS, check, compose, parse, set_key
from cyclestyle.cli.keys import TAKEN_AS_TYPED
from cyclestyle.errors import CommandError


class SweepJob(NamedTuple):
    """One of the training runs that `--multirun` starts."""

    line: list[str]  # equivalent arguments without --multirun
    cfg: DictConfig


def jobs(command: str, arguments: Sequence[str]) -> list[SweepJob]:
    """Create a job with its own run folder for every combination of values in `arguments`; check each config.

    Raises:
        CommandError: the command does not train, torchrun started several processes, or a config is invalid.
    """
    if "run_dir" not in get_type_hints(SCHEMAS[command]):
        raise CommandError(f"{command} has no --multirun: it trains nothing")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CommandError("--multirun starts its jobs one after the other: use trainer.devices=2 instead of torchrun")
    alternatives = [list(sweep_values(split(argument))) for argument in arguments]
    sweep = []
    for number, line in enumerate(itertools.product(*alternatives)):
        cfg = compose(command, line)
        run_dir = Argument("run_dir", f"{cfg.run_dir}/{number}")
        set_key(cfg, run_dir, command)
        check(cfg)
        sweep.append(SweepJob([*line, "=".join(run_dir)], cfg))
    return sweep


def sweep_values(argument: Argument) -> Iterator[str]:
    """Yield `key=1` and `key=2` for the argument `key=1,2`; paths and names are never split at commas."""
    key, text = argument
    override = None if key in TAKEN_AS_TYPED else parse(argument)
    if override is None or not override.is_sweep_override():
        yield f"{key}={text}"
    elif override.is_discrete_sweep():
        yield from (f"{key}={value}" for value in override.sweep_string_iterator())
    else:
        raise CommandError(f"{key}={text}: --multirun takes lists of values such as {key}=1,2,3")


def run_jobs(command: str, run: Callable[[DictConfig], int | None], todo: Sequence[SweepJob]) -> int:
    """Run the jobs in `todo` one after the other until one fails; return its exit code, or 0 if all succeed."""
    for number, (line, cfg) in enumerate(todo, 1):
        print(f"cyclestyle {command}: job {number} of {len(todo)}: {shlex.join(line)}", flush=True)
        sys.argv[1:] = line  # torchrun repeats this command line, which must then start a single run
        if code := run(cfg):
            return code
    return 0
