"""Run torchrun without its long failure report, since a process that fails prints an error itself.

`python -m cyclestyle.train trainer.devices=2` runs
`python -m cyclestyle.distributed.quiet_torchrun --standalone --nproc_per_node=2 -m cyclestyle.train ...`. For a script
that trains with `trainer.devices=2`, the path of the script takes the place of `-m cyclestyle.train`.
"""

import logging
import signal
import sys

from cyclestyle.distributed.launch import write_reason
from cyclestyle.errors import warn
from cyclestyle.signals import terminate_with_parent


def main() -> None:
    """Run torchrun; exit with code 1 if a process fails or a signal ends torchrun."""
    terminate_with_parent()  # called before the imports, which take seconds
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # silences torchrun only: the training processes have separate logging
    try:
        run.main(sys.argv[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # a process that a signal killed has printed no error
            name = signal.Signals(-failure.exitcode).name
            reason = f"process {rank} was ended by {name}, the others with it"
            write_reason(reason)
            warn(reason)
        sys.exit(1)
    except SignalException:
        sys.exit(1)


if __name__ == "__main__":
    main()
