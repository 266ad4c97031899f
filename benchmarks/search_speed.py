"""Time of searches: candidates, CPU seconds of one process, and candidates per second.

    python benchmarks/search_speed.py

Each search runs three times in a fresh process each, since graphs keep results; the median is printed. CPU seconds, as
wall time says what else a machine does; the start of Python and the reading of the spec are not part of it.
"""

import subprocess
import sys
from statistics import median

_RUN = """
import sys, time
import l4spec
from planners.search.deployments import search_deployments
from planners.search.search_request import SearchRequest

graph = l4spec.compile(l4spec.load(sys.argv[1]))
options = {"prompt_tokens": 8192, "output_tokens": 1024, "concurrency": 20, "ttft": 1.0, "tpot": 0.033}
if sys.argv[2] != "all":
    options["gpus"] = sys.argv[2]
start = time.process_time()
answer = search_deployments(graph, SearchRequest(**options))
print(time.process_time() - start, answer.space.candidates, answer.space.pruned, answer.num_meeting)
"""
SEARCHES = (("scout", "8xH100"), ("scout", "64xH100"), ("deepseek-v3", "64xH100"), ("scout", "all"))


def main() -> None:
    """Print a row per search."""
    print("| spec | hardware | candidates | ruled out by proof | meet the limits | CPU s | candidates/s |")
    print("|---|---|---|---|---|---|---|")
    for spec, gpus in SEARCHES:
        runs = []
        for _ in range(3):
            command = [sys.executable, "-c", _RUN, spec, gpus]
            runs.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
        seconds = median(float(run[0]) for run in runs)
        candidates, pruned, meeting = (int(number) for number in runs[0][1:])
        rate = candidates / seconds
        print(f"| {spec} | {gpus} | {candidates:,} | {pruned:,} | {meeting:,} | {seconds:.1f} | {rate:,.0f} |")


if __name__ == "__main__":
    main()
