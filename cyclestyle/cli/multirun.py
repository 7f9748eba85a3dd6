"""Implementation of `--multirun`: train once for each combination of values, one run after the other."""

import hashlib
import itertools
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, get_type_hints

from hydra.core.override_parser.types import Glob
from omegaconf import DictConfig, OmegaConf

from cyclestyle.cli.arguments import Argument, escape_interpolation, split
from cyclestyle.cli.compose import SCHEMAS, check, compose, config_folders, groups, parse, set_key, to_plain
from cyclestyle.cli.help import option_files
from cyclestyle.cli.keys import TAKEN_AS_TYPED, with_present_names
from cyclestyle.errors import CommandError, CyclestyleError

LONGEST = 200  # bytes of a folder's name; most file systems allow 255


class SweepJob(NamedTuple):
    """One of the training runs that `--multirun` starts."""

    line: list[str]  # equivalent arguments without --multirun
    cfg: DictConfig


def jobs(
    command: str,
    arguments: Sequence[str],
    *,
    config_dirs: Sequence[str] = (),
    report: Callable[[str], object] = lambda line: None,
) -> list[SweepJob]:
    """Create a `SweepJob` with its own run folder for every combination of values in `arguments`; check each config.

    The run folder is named by the keys whose values differ, such as `runs/own/lr=0.0001,identity=0`. A run that an
    earlier version began in a numbered folder (`runs/own/0`) keeps this folder if it has the same values.

    Args:
        config_dirs: see `compose`.
        report: function that receives the lines of `compose`; a line that several runs share is reported once.

    Raises:
        CommandError: the command does not train, torchrun started several processes, or a config is invalid.
    """
    if "run_dir" not in get_type_hints(SCHEMAS[command]):
        raise CommandError(f"{command} has no --multirun: it trains nothing")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CommandError("--multirun starts its jobs one after the other: use trainer.devices=2 instead of torchrun")
    folders = config_folders(config_dirs)
    command_groups = groups(command)
    alternatives = [list(sweep_values(argument, command_groups, folders)) for argument in arguments]
    swept = [split(values[0]).key for values in alternatives if len(values) > 1]
    reported: dict[str, None] = {}
    sweep: list[SweepJob] = []
    for number, line in enumerate(itertools.product(*alternatives)):
        cfg = compose(command, line, config_dirs=config_dirs, report=reported.setdefault)
        values = [split(word).text for word, choices in zip(line, alternatives, strict=True) if len(choices) > 1]
        folder = folder_name(swept, values, taken={Path(job.cfg.run_dir).name for job in sweep})
        if not folder or is_same_run(Path(cfg.run_dir) / str(number), cfg, swept):
            folder = str(number)
        run_dir = Argument("run_dir", escape_interpolation(f"{cfg.run_dir}/{folder}"))
        set_key(cfg, run_dir, command)
        check(cfg)
        sweep.append(SweepJob([*line, "=".join(run_dir)], cfg))
    for text in reported:
        report(text)
    return sweep


def sweep_values(argument: str, groups: Mapping[str, Any], folders: Sequence[Path]) -> Iterator[str]:
    """Yield one argument per value: `key=1` and `key=2` for `key=1,2`, and all matching options for `group=glob(*)`.

    An argument with one value is yielded unchanged. So is an argument whose key takes a path or a name, even if the
    value contains commas.

    Args:
        argument: argument of the command line.
        groups: config groups of the command, keyed by name.
        folders: config folders in which the options of a group are searched.
    """
    if argument.startswith("~"):
        yield argument
        return
    key, text = split(argument)
    override = None if key in TAKEN_AS_TYPED else parse(Argument(key, text))
    value: Any = override.value() if override else None
    if override is None or not override.is_sweep_override():
        yield argument
    elif isinstance(value, Glob):
        options = value.filter(list(option_files(folders, key))) if key in groups else []
        if not options:
            raise CommandError(f"{argument}: no option of a config group matches")
        yield from (f"{key}={option}" for option in options)
    elif override.is_discrete_sweep():
        yield from (f"{key}={one}" for one in override.sweep_string_iterator())
    else:
        raise CommandError(f"{key}={text}: --multirun takes lists of values such as {key}=1,2,3")


def folder_name(keys: Sequence[str], values: Sequence[str], *, taken: set[str]) -> str:
    """Return a name for a run's folder, such as `lr=0.0001,identity=0`; "" if there are no keys.

    Args:
        keys: dotted keys that differ between runs; only the last part of a key is used if it is unique.
        values: one value for each key, as on the command line; a path of a YAML file is shortened to its stem.
        taken: names of other runs' folders.
    """
    last = [key.rpartition(".")[2] for key in keys]
    labels = [part if last.count(part) == 1 else key for part, key in zip(last, keys, strict=True)]
    stems = [Path(value).stem if value.endswith((".yaml", ".yml")) else value for value in values]
    plain = [re.sub(r"[^\w.+-]+", "_", value).strip("_") or "_" for value in stems]
    name = ",".join(f"{label}={value}" for label, value in zip(labels, plain, strict=True))
    if name in taken or len(name.encode()) > LONGEST:
        digest = hashlib.sha256(repr(values).encode()).hexdigest()[:8]
        name = name.encode()[:LONGEST].decode(errors="ignore") + f",{digest}"
    return name


def is_same_run(folder: Path, cfg: DictConfig, swept: Sequence[str]) -> bool:
    """Return whether `folder` holds a run whose saved config equals `cfg` in the `swept` keys."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=False)
        saved = OmegaConf.create(with_present_names(cast(dict[str, Any], content)))
        now = OmegaConf.create(to_plain(cfg))
        keys = ["name" if key == "experiment" else key for key in swept]
        return all(OmegaConf.select(saved, key) == OmegaConf.select(now, key) for key in keys)
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def run_jobs(
    command: str,
    run: Callable[[DictConfig], int | None],
    todo: Sequence[SweepJob],
    *,
    prefix: Sequence[str] = (),
) -> int:
    """Run the jobs in `todo` one after the other until one fails; print a summary.

    Args:
        run: function that trains with a config and returns the exit code; None is success.
        prefix: flags that come first in the command line of each job, which is put into `sys.argv`.

    Returns:
        Exit code of the failed job, or 0 if all succeed.

    Raises:
        CyclestyleError: raised by `run`; the summary is printed before.
    """
    codes: list[int] = []
    try:
        for number, (line, cfg) in enumerate(todo, 1):
            print(f"cyclestyle {command}: job {number} of {len(todo)}: {shlex.join(line)}", flush=True)
            sys.argv[1:] = [*prefix, *line]  # torchrun repeats this command line, which must then start a single run
            codes.append(CyclestyleError.code)
            try:
                codes[-1] = run(cfg) or 0
            except CyclestyleError as error:
                codes[-1] = error.code
                raise
            if codes[-1]:
                return codes[-1]
    finally:
        print("\n".join(summary(todo, codes)), flush=True)
    return 0


def summary(todo: Sequence[SweepJob], codes: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a table of all jobs: number, exit code, run folder, and the last logged losses."""
    width = max(len(str(job.cfg.run_dir)) for job in todo)
    yield f"job  exit  {'folder'.ljust(width)}  last losses"
    for number, (job, code) in enumerate(itertools.zip_longest(todo, codes), 1):
        folder = Path(job.cfg.run_dir)
        exit_code = "-" if code is None else code
        yield f"{number:3}  {exit_code:>4}  {str(folder).ljust(width)}  {last_losses(folder)}".rstrip()


def last_losses(folder: Path) -> str:
    """Return step and losses in the last line of a run's metrics.jsonl; "" if there are none."""
    try:
        values = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        losses = {name.removeprefix("loss/"): value for name, value in values.items() if name.startswith("loss/")}
        return " ".join([f"step {values['step']}:", *(f"{name} {value:.3g}" for name, value in losses.items())])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return ""
