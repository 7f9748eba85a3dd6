"""Errors of a model that may be a picture's fault, or a bug that would meet all pictures."""

from cyclestyle.photoset.plan import Job

MOST = 4  # pictures in a row


class Doubts:
    """The pictures that a model has failed on since it last translated one.

    A model that then translates another picture works, and they failed by themselves. One that fails on `MOST` in a
    row, or on all that there are, is taken to be broken: its error is raised, not reported for hundreds of pictures.
    """

    def __init__(self) -> None:
        self._works = False
        self._waiting: list[tuple[Job, str, Exception]] = []

    def add(self, job: Job, reason: str, error: Exception) -> None:
        """Note a failure; raise the first of those in a row if they are too many.

        Args:
            reason: for the report.
        """
        self._waiting.append((job, reason, error))
        if len(self._waiting) >= MOST:
            raise self._waiting[0][2]

    def settled(self) -> list[tuple[Job, str]]:
        """The failures that were in doubt, now that the model has translated a picture, each once."""
        self._works = True
        settled, self._waiting = self._waiting, []
        return [(job, reason) for job, reason, _ in settled]

    def end(self) -> None:
        """Raise the first failure unless the model has translated a picture."""
        if self._waiting and not self._works:
            raise self._waiting[0][2]
