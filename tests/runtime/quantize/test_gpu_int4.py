"""The benchmark of full-size Int4 on a GPU, rehearsed on the CPU: its code runs, and says when nothing was measured."""

import pytest

from benchmarks import gpu_int4


@pytest.mark.filterwarnings("ignore")
def test_the_rehearsal_runs_and_holds_bytes_against_the_plan() -> None:
    report = gpu_int4.measure(gpu_int4.Setting("tiny/scout", "cpu", None, 96, 32, 4, 128))
    assert report["measured"]["weight_bytes"] == report["planned"]["weight_bytes"]
    assert report["measured"]["longest_context"] >= 96 + 4
    assert report["measured"]["prefill_seconds"] > 0 < report["measured"]["step_seconds"]
