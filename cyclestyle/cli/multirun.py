"""`--multirun`: one run after the other, one for each combination of values."""

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
    """One run of a --multirun."""

    line: list[str]  # the ordinary command line that does the same
    cfg: DictConfig


def jobs(command: str, arguments: Sequence[str]) -> list[SweepJob]:
    """Every combination of the values given, each with a run folder of its own, and checked."""
    if "run_dir" not in get_type_hints(SCHEMAS[command]):
        raise CommandError(f"{command} has no --multirun: it trains nothing")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CommandError("--multirun starts its jobs one after the other: use trainer.devices=2 instead of torchrun")
    several = [list(sweep_values(split(argument))) for argument in arguments]
    found = []
    for number, line in enumerate(itertools.product(*several)):
        cfg = compose(command, line)
        own_folder = Argument("run_dir", f"{cfg.run_dir}/{number}")
        set_key(cfg, own_folder, command)
        check(cfg)
        found.append(SweepJob([*line, "=".join(own_folder)], cfg))
    return found


def sweep_values(argument: Argument) -> Iterator[str]:
    """`key=1`, `key=2` for `key=1,2`; paths and names are never split."""
    key, text = argument
    override = None if key in TAKEN_AS_TYPED else parse(argument)
    if override is None or not override.is_sweep_override():
        yield f"{key}={text}"
    elif override.is_discrete_sweep():
        yield from (f"{key}={value}" for value in override.sweep_string_iterator())
    else:
        raise CommandError(f"{key}={text}: --multirun takes lists of values such as {key}=1,2,3")


def run_jobs(command: str, run: Callable[[DictConfig], int | None], todo: Sequence[SweepJob]) -> int:
    """One job after the other; stops at the first that does not end well."""
    for number, (line, cfg) in enumerate(todo, 1):
        print(f"cyclestyle {command}: job {number} of {len(todo)}: {shlex.join(line)}", flush=True)
        sys.argv[1:] = line  # whoever starts this job again, torchrun for one, starts an ordinary run
        if code := run(cfg):
            return code
    return 0
