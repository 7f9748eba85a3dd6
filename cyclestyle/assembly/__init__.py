"""From config to objects: builds the parts of a training run."""

from cyclestyle.assembly.disk import forecast_disk
from cyclestyle.assembly.images import check_crop, find_images
from cyclestyle.assembly.objective import build_objective
from cyclestyle.assembly.periodic import build_own_tasks, build_tasks, opened_loggers, opened_writer, work_done
from cyclestyle.assembly.run_folder import keep_reading, lock_run_folder
from cyclestyle.assembly.scores import build_scores
from cyclestyle.assembly.trainer import build_trainer

__all__ = [
    "build_objective",
    "build_own_tasks",
    "build_scores",
    "build_tasks",
    "build_trainer",
    "check_crop",
    "find_images",
    "forecast_disk",
    "keep_reading",
    "lock_run_folder",
    "opened_loggers",
    "opened_writer",
    "work_done",
]
