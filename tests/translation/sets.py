"""Helpers that run a whole translation of a photo set, with a model that inverts images."""

from pathlib import Path

from cyclestyle.distributed.world import World
from cyclestyle.photoset import runner
from cyclestyle.photoset.journal import FOLDER
from cyclestyle.photoset.plan import Plan, make_jobs, make_plan
from cyclestyle.photoset.runner import JobResult, Settings
from cyclestyle.photoset.worker_tasks import Reading, Writing
from tests.translation.models import Inverted


def planned(
    source: Path | str, output: Path, *, existing: str = "skip", count: int = 1, settings: str = "settings", **options
) -> Plan:
    """Create a plan for translating `source`; the output folder stays locked until the plan's journal is released."""
    folders = ("",) if count == 1 else tuple(f"{number}" for number in range(count))
    jobs = make_jobs(str(source), output, folders=folders, **options)
    return make_plan(jobs, existing=existing, settings=settings, world=World())


def run(source: Path | str, output: Path, *, count: int = 1, settings: str = "settings", **options) -> JobResult:
    """Translate `source` to `output`; `options` are passed to the plan, reading and the workers."""
    working = {key: options.pop(key) for key in ("batch_size", "workers") if key in options}
    reading = {key: options.pop(key) for key in ("resize", "metadata", "feather") if key in options}
    sheet = options.pop("sheet", None)
    plan = planned(source, output, count=count, settings=settings, **options)
    try:
        run_settings = Settings(Reading(**reading), Writing(plan.folder, sheet=sheet), settings)
        outcome = runner.run_plan(plan, Inverted(count), run_settings, **working)
        if not plan.is_single:
            plan.journal.report(outcome.lines)
    finally:
        plan.journal.release()
    return outcome


def counts(outcome: JobResult) -> tuple[int, ...]:
    """Return the numbers of photos that were translated, are up to date, were kept, and failed."""
    return tuple(outcome.count(status) for status in ("translated", "up to date", "kept", "failed"))


def tree(folder: Path) -> set[str]:
    """Return the paths of all files below a folder, except the files in the journal's folder."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(name) for name in files if FOLDER not in name.parts}
