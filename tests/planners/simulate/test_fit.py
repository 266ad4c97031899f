"""A fit needs a run with measured latencies."""

import pytest

from l4spec.errors import UserError
from planners.simulate.asked import scenario_of
from planners.simulate.fit import fit
from planners.simulate.request import SimulateRequest
from planners.simulate.run import Simulation
from planners.simulate.workload.traces import TraceEntry

ASKED = SimulateRequest(gpus="1xH100", rate="6/s", prompt_tokens=800, output_tokens=60, requests=40)


def test_a_run_without_measured_latencies_is_refused() -> None:
    loaded = scenario_of("llama-3.1-8b", ASKED)
    with pytest.raises(UserError, match="no measured latencies"):
        fit(lambda: Simulation(loaded), [TraceEntry(0, 1, 1)] * 3, source="a test")
