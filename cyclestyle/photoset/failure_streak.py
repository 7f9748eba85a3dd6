"""Distinction between a model that fails on a few photos and a model that is broken."""

from cyclestyle.photoset.plan import Job

MAX_IN_A_ROW = 4  # number of consecutive photos


class FailureStreak:
    """The failures of a model since the last photo that it translated.

    If the model translates another photo after these failures, the model works, and only the failed photos are
    reported. If the model fails on `MAX_IN_A_ROW` photos in a row, or on all photos of a set, the model is broken: its
    first error is raised, and no failure is reported for single photos.
    """

    def __init__(self) -> None:
        self._works = False
        self._failures: list[tuple[Job, str, Exception]] = []

    def add(self, job: Job, reason: str, error: Exception) -> None:
        """Record a failure; raise the first error of the streak if the streak now has `MAX_IN_A_ROW` failures.

        Args:
            job: job of the photo on which the model failed.
            reason: failure reason for the report.
            error: exception that the model raised.
        """
        self._failures.append((job, reason, error))
        if len(self._failures) >= MAX_IN_A_ROW:
            raise self._failures[0][2]

    def clear(self) -> list[tuple[Job, str]]:
        """End the streak after a photo was translated; return the failures in the streak as pairs (job, reason)."""
        self._works = True
        failures, self._failures = self._failures, []
        return [(job, reason) for job, reason, _ in failures]

    def finish(self) -> None:
        """Raise the first error of the streak if the model has failed and has translated no photo."""
        if self._failures and not self._works:
            raise self._failures[0][2]
