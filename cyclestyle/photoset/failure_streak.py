"""Distinction between a model that fails on single photos and a model that is broken."""

from cyclestyle.photoset.plan import Job

MAX_IN_A_ROW = 4  # number of consecutive photos


class FailureStreak:
    """The failures of a model since the last photo that it translated.

    If the model then translates another photo, it works, and only the failed photos are reported. If the model fails
    on `MAX_IN_A_ROW` photos in a row, or on all photos of a set, it is broken: its error is raised, instead of being
    reported for every photo.
    """

    def __init__(self) -> None:
        self._works = False
        self._failures: list[tuple[Job, str, Exception]] = []

    def add(self, job: Job, reason: str, error: Exception) -> None:
        """Record a failure; raise the first error of the streak once the streak has `MAX_IN_A_ROW` failures.

        Args:
            job: photo that the model failed on.
            reason: text for the report.
            error: exception of the model.
        """
        self._failures.append((job, reason, error))
        if len(self._failures) >= MAX_IN_A_ROW:
            raise self._failures[0][2]

    def clear(self) -> list[tuple[Job, str]]:
        """End the streak after a translated photo; return the failures of the streak as (job, reason)."""
        self._works = True
        failures, self._failures = self._failures, []
        return [(job, reason) for job, reason, _ in failures]

    def finish(self) -> None:
        """Raise the first error of the streak unless the model has translated a photo."""
        if self._failures and not self._works:
            raise self._failures[0][2]
