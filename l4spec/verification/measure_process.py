"""A process that measures one job: `python -m l4spec.verification.measure_process JOB OUTCOME`, both pickled files.

The parent writes the job into a folder that only it can read. Progress goes to stderr, a line each.
"""

import os
import pickle
import sys
from pathlib import Path

from l4spec.verification.run_measure_ranks import outcome_of


def main() -> None:
    """Measure the job of the first file and write the outcome into the second."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch's own log tells a user nothing
    request, answer = map(Path, sys.argv[1:])
    job, time_limit = pickle.loads(request.read_bytes())

    def progress(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    answer.write_bytes(pickle.dumps(outcome_of(job, time_limit, progress if job.progress else None)))


if __name__ == "__main__":
    main()
