"""A fit needs a run with measured latencies."""

import pytest

from l4spec.errors import UserError
from planners.simulate.fit import fit
from planners.simulate.request import SimulateRequest
from planners.simulate.requested_scenario import scenario_of
from planners.simulate.run import Simulation
from planners.simulate.times.planned import PlannedTimes
from planners.simulate.workload.traces import TraceEntry
from planners.timing.layer_demand import Step

ASKED = SimulateRequest(gpus="1xH100", rate="6/s", prompt_tokens=800, output_tokens=60, requests=40)


def test_a_run_without_measured_latencies_is_refused() -> None:
    loaded = scenario_of("llama-3.1-8b", ASKED)
    with pytest.raises(UserError, match="no measured latencies"):
        fit(Simulation(loaded), [TraceEntry(0, 1, 1)] * 3, source="a test")


def test_a_fit_finds_the_factors_that_a_run_was_simulated_with() -> None:
    """Weights at 0.6 of the published share, blocks 1.5 and requests 3 times as long.

    The prior pulls back: a factor that is four of its spreads away costs 16 x WEIGHT, the square of 9 % of error.
    """
    loaded = scenario_of("llama-3.1-8b", ASKED.changed(requests=24))
    (key,) = (first := Simulation(loaded)).servers
    times = first.servers[key].times
    assert isinstance(times, PlannedTimes)
    prior = times.factors
    truth = prior.model_copy(
        update={"memory": 0.6 * prior.memory, "layer": 1.5 * prior.layer, "request": 3 * prior.request}
    )
    run = first.with_times(key, PlannedTimes(times.model.with_efficiency(truth))).run()
    served = sorted(run.requests, key=lambda request: request.number)
    entries = [TraceEntry(r.arrival, r.prompt, r.output, measured=(r.ttft, r.e2e)) for r in served]

    fitted = fit(first, entries, source="a test", num_fitted=16)

    assert fitted.unseen is not None
    assert fitted.seen.e2e < 0.05
    assert fitted.unseen.e2e < 0.05
    assert abs(fitted.factors.request / truth.request - 1) < 0.1
    # short prompts are read and answered a few at a time: weights and blocks decide, and hide each other in part
    step = Step(decode=4, context=830)
    model = times.model
    right, wrong, back = (model.with_efficiency(factors).seconds(step) for factors in (truth, prior, fitted.factors))
    assert abs(back / right - 1) < 0.06
    assert abs(wrong / right - 1) > 0.25
    assert "attention" in fitted.undetermined
