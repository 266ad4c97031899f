"""The cache of simulated servers is that of the plan, whatever the layout and the scheduler; shared caches hold up."""

import pytest

from planners import plan
from tests.planners.simulate.scenarios import STEPS, serve, simulation

ONE = "workload: {arrivals: {kind: constant, rate: 0.01/s}, prompt_tokens: 1k, output_tokens: 50, requests: 2}"
FULL = (
    "workload: {arrivals: {kind: poisson, rate: 20/s}, requests: 80, output_tokens: 200, "
    "prompt_tokens: {kind: lognormal, mean: 1k, cv: 1.0, most: 5k}}"
)


@pytest.mark.parametrize(
    ("layout", "scheduler", "options"),
    [
        ("tp: 8, pp: 1", "{}", {}),
        ("tp: 4, pp: 2", "{}", {}),
        ("tp: 2, pp: 4", "{}", {}),
        ("tp: 8, pp: 1", "{max_num_batched_tokens: 65536}", {"prefill_chunk": 65536}),
        ("tp: 8, pp: 1", "{max_num_seqs: 64}", {"max_num_seqs": 64}),
    ],
)
def test_a_simulated_cache_has_the_longest_context_of_the_plan(
    layout: str, scheduler: str, options: dict[str, int]
) -> None:
    """Without data parallelism one sequence may fill the cache; blocks of 16 tokens are never half full."""
    run = simulation(f"models: {{scout: {{gpus: 8xH100, {layout}, scheduler: {scheduler}}}}}\n{ONE}")
    server = run.servers["scout"]
    tp, pp = (int(part.split(":")[1]) for part in layout.split(","))
    planned = plan("scout", gpus="8xH100", engine="vllm", tp=tp, pp=pp, **options)
    assert server.num_caches * server.blocks_per_rank * server.law.block_size == planned.max_context


@pytest.mark.parametrize(
    "engine",
    [
        "engine: vllm, kv_blocks: 600",
        "engine: vllm-hybrid, kv_blocks: 2400",
        "engine: sglang-hybrid, kv_blocks: 9600",
        "engine: tensorrt-llm, kv_blocks: 300",
        "engine: tensorrt-llm, kv_blocks: 300, scheduler: {overbooking: max_utilization}",
        "engine: vllm, kv_blocks: 600, speculation: {kind: mtp, acceptance: [0.8]}",
        "engine: vllm, kv_blocks: 600, disaggregated: {prefill_replicas: 1}",
    ],
)
def test_micro_batches_of_a_pipeline_fill_one_cache_and_all_requests_end(engine: str) -> None:
    run = simulation(f"models: {{scout: {{gpus: 8xH100, tp: 2, pp: 4, {engine}}}}}\n{FULL}")
    outcome = run.run()
    assert outcome.result.finished == 80
    for server in outcome.result.servers:
        assert server.peak_cache_use <= 1
    assert outcome.result.servers[0].peak_cache_use > 0.9
    for group in run.clusters.values():
        assert all(pool.used == 0 for replica in group.replicas for pool in replica.pools)


def test_a_server_is_busy_by_the_time_since_the_first_arrival() -> None:
    """One request of 50 steps of 10 ms, which arrives after 100 s, keeps its server busy all the time."""
    late = "workload: {arrivals: {kind: constant, rate: 0.01/s}, prompt_tokens: 100, output_tokens: 50, requests: 1}"
    (server,) = serve(f"models: {{m: {{spec: tiny/scout, gpus: 1xH100, {STEPS}}}}}\n{late}").result.servers
    assert server.utilization == 1
