"""CPU time that a piece of work takes, on machines whose neighbours come and go."""

import time
from collections.abc import Callable


def takes_at_most(seconds: float, work: Callable[[], object], attempts: int = 3) -> bool:
    """Whether one of a few runs of `work` takes at most so much CPU time: a shared machine may be slow for a moment.

    What `work` keeps for its next run must not make that one faster: give it a model of its own each time.
    """
    for _ in range(attempts):
        start = time.process_time()
        work()
        if time.process_time() - start <= seconds:
            return True
    return False
