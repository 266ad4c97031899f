"""A sweep runs where joblib is set to run: here on the workers of a local dask cluster, processes of their own."""

import subprocess
import sys

import pytest

_ON_DASK = """
import joblib
from dask.distributed import Client, LocalCluster
from planners.sweep.sweep import sweep

if __name__ == "__main__":
    values = {"text.parts.moe.num_experts": [2, 4, 8]}
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        with joblib.parallel_config("dask"):
            made = sweep("tiny/scout", values, gpus="1xL4", jobs=2)
        moves = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.transition_log))
    print(made == sweep("tiny/scout", values, gpus="1xL4"), moves > 0)
"""


def test_dask_s_workers_give_the_same_rows() -> None:
    pytest.importorskip("distributed")
    done = subprocess.run([sys.executable, "-c", _ON_DASK], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "True True\n", done.stderr
