"""A command of translation from its paths to its outcome, with a model that inverts."""

from pathlib import Path

from cyclestyle.distributed.world import World
from cyclestyle.photoset import plan as planning
from cyclestyle.photoset import runner
from cyclestyle.photoset.journal import FOLDER
from cyclestyle.photoset.plan import Plan
from cyclestyle.photoset.runner import JobResult, Settings
from cyclestyle.photoset.worker_tasks import Reading, Writing
from tests.translation.models import Inverted


def planned(
    source: Path | str, output: Path, *, existing: str = "skip", count: int = 1, settings: str = "settings", **options
) -> Plan:
    """What there is to do; the output is taken until its journal is released."""
    folders = ("",) if count == 1 else tuple(f"{number}" for number in range(count))
    jobs = planning.jobs(str(source), output, folders=folders, **options)
    return planning.plan(jobs, existing=existing, settings=settings, world=World())


def run(source: Path | str, output: Path, *, count: int = 1, settings: str = "settings", **options) -> JobResult:
    """Translate `source` to `output`; `options` are those of plans, reading, writing and working."""
    working = {key: options.pop(key) for key in ("batch_size", "workers") if key in options}
    reading = {key: options.pop(key) for key in ("resize", "metadata") if key in options}
    sheet = options.pop("sheet", None)
    plan = planned(source, output, count=count, settings=settings, **options)
    try:
        how = Settings(Reading(**reading), Writing(plan.folder, sheet=sheet), settings)
        outcome = runner.run_plan(plan, Inverted(count), how, **working)
        if plan.journal is not None:
            plan.journal.report(outcome.lines)
    finally:
        if plan.journal is not None:
            plan.journal.release()
    return outcome


def counts(outcome: JobResult) -> tuple[int, ...]:
    """Pictures that were translated, are up to date, were kept, failed."""
    return tuple(outcome.count(status) for status in ("translated", "up to date", "kept", "failed"))


def tree(folder: Path) -> set[str]:
    """The files, without what is noted about them."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(name) for name in files if FOLDER not in name.parts}
