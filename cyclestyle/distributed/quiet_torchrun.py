"""torchrun without its report of several screens: the process where something went wrong has said what.

`trainer.devices=2` runs
`python -m cyclestyle.distributed.quiet_torchrun --standalone --nproc_per_node=2 -m cyclestyle.train ...`.
"""

import logging
import signal
import sys

from cyclestyle.signals import terminate_with_parent


def main() -> None:
    """torchrun's command; exits with 1 if any process failed or the job was ended by a signal."""
    terminate_with_parent()  # before seconds go by with imports
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # of this process, which does nothing but wait
    try:
        run.main(sys.argv[1:])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # it could not say so itself
            name = signal.Signals(-failure.exitcode).name
            print(f"cyclestyle: process {rank} was ended by {name}, the others with it", file=sys.stderr)
        sys.exit(1)
    except SignalException:
        sys.exit(1)


if __name__ == "__main__":
    main()
