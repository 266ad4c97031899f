"""The plan's formulas of open loops beside simulated runs, as a Markdown table.

    python benchmarks/open_loop.py

Four models with fixed layouts, two shapes of requests, five rates; 1,000 requests each, one seed. A rate that the plan
calls too high is marked: the simulated queue grows without end there.
"""

from itertools import product
from statistics import median
from typing import Any

from l4spec import compile as compile_spec
from l4spec import load
from planners import plan
from planners.simulate.request import SimulateRequest
from planners.simulate.requested_scenario import scenario_of
from planners.simulate.run import Simulation

MODELS = (("scout", "8xH100"), ("llama-3.1-8b", "1xH100"), ("maverick", "8xH200"), ("llama-3.1-70b", "4xH100"))
SHAPES = ((1000, 300), (4000, 100))
RATES = (0.2, 1, 3, 6, 10)


def main() -> None:
    """Print the table and the medians of the rows below overload."""
    errors = []
    print("| deployment | prompt / output | rate | TTFT, plan | simulated | E2E, plan | simulated |")
    print("|---|---|---|---|---|---|---|")
    for (spec, gpus), (prompt, output), rate in product(MODELS, SHAPES, RATES):
        deployed: dict[str, Any] = {"gpus": gpus, "tp": int(gpus[0]), "ep": 1, "engine": "vllm"}
        lengths: dict[str, Any] = {"prompt_tokens": prompt, "output_tokens": output}
        latency = plan(compile_spec(load(spec)), rate=rate, **deployed, **lengths).latency
        assert latency is not None, "a plan of GPUs has times"
        ttft, user_rate = latency.ttft_seconds, latency.tokens_per_second_per_user
        assert ttft is not None, "factors of vLLM are shipped"
        assert user_rate is not None, "requests are given"
        e2e = output / user_rate
        asked = SimulateRequest(rate=f"{rate}/s", requests=1000, seed=1, **deployed, **lengths)
        result = Simulation(scenario_of(spec, asked)).run().result
        assert result.ttft is not None, "requests finished"
        assert result.e2e is not None, "requests finished"
        too_high = any("rate is too high" in caution for caution in latency.cautions)
        if not too_high:
            errors.append((abs(ttft / result.ttft.mean - 1), abs(e2e / result.e2e.mean - 1)))
        cells = (f"{spec} {gpus}", f"{prompt} / {output}", f"{rate}/s" + " (too high)" * too_high)
        times = (f"{seconds:.3f} s" for seconds in (ttft, result.ttft.mean, e2e, result.e2e.mean))
        print("| " + " | ".join((*cells, *times)) + " |")
    first, last = ([pair[index] for pair in errors] for index in (0, 1))
    print(f"\n{len(errors)} rows below overload: TTFT median {median(first):.1%}, most {max(first):.1%};", end=" ")
    print(f"E2E median {median(last):.1%}, most {max(last):.1%}")


if __name__ == "__main__":
    main()
