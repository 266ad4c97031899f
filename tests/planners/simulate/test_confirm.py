"""What a search ranks is simulated as `l4spec simulate` would, and where nobody waits both agree."""

from typing import Any

import pytest

from l4spec.errors import UserError
from planners.search.deployments import search_deployments
from planners.search.search_request import SearchRequest
from planners.search.search_types import SearchAnswer
from planners.simulate.confirm import MOST_CONFIRMED, confirmed
from planners.simulate.request import SimulateRequest
from planners.simulate.requested_scenario import scenario_of
from planners.simulate.run import Simulation
from tests.planners.models import graph

ASKED: dict[str, Any] = {
    "prompt_tokens": 2000,
    "output_tokens": 100,
    "gpus": "4xH100",
    "engine": "vllm-hybrid",
    "quantization": "w4a16",
}
TAKEN = ("gpus", "quantization", "kv_dtype", "engine", "tp", "ep", "pp", "prompt_tokens", "output_tokens")


def answered(**options: Any) -> SearchAnswer:
    request = SearchRequest(**ASKED, **options)
    return confirmed("scout", (), search_deployments(graph("scout"), request), request)


def test_the_first_ten_are_simulated_as_by_the_command() -> None:
    answer = answered(concurrency=6, ttft="500ms")
    assert [each.rank for each in answer.ranked if each.simulated] == list(range(1, MOST_CONFIRMED + 1))
    for each in answer.ranked[:2]:
        options = {name: value for name, value in each.request.items() if name in TAKEN}
        load = SimulateRequest(**options, concurrency=each.concurrency_per_replica, ttft="0.5 s", requests=200)
        result = Simulation(scenario_of("scout", load)).run().result
        service = each.simulated
        assert service is not None
        assert result.ttft is not None
        assert (service.ttft_mean_seconds, service.attainment) == (result.ttft.mean, result.attainment)
        assert service.breaks == (("ttft",) if result.ttft.mean > 0.5 else ())


def test_where_requests_meet_nobody_closed_form_and_simulation_agree() -> None:
    """At one request in a hundred seconds each is alone, but for one in a hundred of Poisson's that meet."""
    for each in answered(rate=0.01).ranked[:MOST_CONFIRMED]:
        service = each.simulated
        assert service is not None
        assert service.tpot_mean_seconds == pytest.approx(each.time_per_output_token_seconds, rel=0.05)
        assert service.ttft_mean_seconds == pytest.approx(each.ttft_seconds, rel=0.05)


def test_an_option_that_a_simulation_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match="--prefill-chunk: is not part of a simulation"):
        answered(concurrency=2, prefill_chunk=512)


def test_a_deployment_whose_cache_holds_a_sequence_but_not_its_prefill_says_so() -> None:
    """Chunked layers give blocks back once a chunk is done: until then a prompt keeps more than it will."""
    request = SearchRequest(
        prompt_tokens=100_000, output_tokens=2000, rate=0.2, gpus="8xA100", engine="vllm-hybrid", quantization="fp8"
    )
    answer = confirmed("maverick", (), search_deployments(graph("maverick"), request), request, number=4)
    reasons = [each.not_simulated for each in answer.ranked[:4]]
    assert any("more blocks while it is computed than the cache has" in reason for reason in reasons)
    assert all(bool(each.simulated) != bool(each.not_simulated) for each in answer.ranked[:4])


def test_a_simulation_that_takes_too_long_is_left() -> None:
    request = SearchRequest(**ASKED, concurrency=64)
    answer = confirmed("scout", (), search_deployments(graph("scout"), request), request, number=1, time_limit=1e-9)
    assert answer.ranked[0].simulated is None
    assert "took more than" in answer.ranked[0].not_simulated
