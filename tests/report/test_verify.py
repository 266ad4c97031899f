"""Claims against the plan: what holds, what does not, and what cannot be computed."""

from typing import Any

import pytest

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.library import shipped_specs
from l4spec.report.claims_page import verify_page
from l4spec.report.page import to_text
from l4spec.spec.claims import Claim
from l4spec.verification.claims import compute, condition, holds, relative_difference, verify
from planners.plan import plan
from tests.report.conftest import Compile


def claim(quantity: str, value: Any, **conditions: Any) -> Claim:
    return Claim.model_validate({"quantity": quantity, "value": value, "source": "a test", **conditions})


@pytest.mark.parametrize("name", sorted(name for name in shipped_specs() if not name.startswith("articles/")))
def test_every_published_claim_of_a_shipped_model_holds(compiled: Compile, name: str) -> None:
    report = verify(compiled(name))
    assert report.checks or name.startswith(("tiny/", "examples/"))
    assert report.holds, [check for check in report.checks if not check.holds]


@pytest.mark.parametrize("name", ["articles/scout", "articles/maverick"])
def test_what_articles_print_does_not_hold(compiled: Compile, name: str) -> None:
    report = verify(compiled(name))
    failing = {check.quantity for check in report.checks if not check.holds}
    assert not report.holds
    assert "active_params" in failing


def test_a_report_holds_when_all_its_checks_do(compiled: Compile) -> None:
    for name in ("scout", "articles/maverick", "tiny/scout"):
        report = verify(compiled(name))
        assert report.holds == all(check.holds for check in report.checks)


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        ("total_params", 108_641_793_536),
        ("active_params", 17_172_894_720),
        ("active_params_without_embedding", 16_138_408_960),
        ("vision_params", 850_960_896),
        ("num_layers", 48),
        ("num_experts", 16),
        ("weight_bytes", 217_283_587_072),
        ("kv_cache_bytes_per_token", 196_608),
        ("flops_per_token", 32_275_824_640),
        ("tokens_per_tile", 144),
        ("max_context", 10_485_760),
    ],
)
def test_each_quantity_is_computed_to_the_digit(compiled: Compile, quantity: str, expected: int) -> None:
    assert compute(compiled("scout"), claim(quantity, 1)) == expected


def test_a_full_layer_of_scout_keeps_40_96_gb_at_ten_million_tokens(compiled: Compile) -> None:
    assert compute(compiled("scout"), claim("kv_cache_bytes_per_layer", 1, context=10_000_000)) == 40_960_000_000


def test_conditions_reach_the_plan(compiled: Compile) -> None:
    graph = compiled("scout")
    given = {"context": 100_000, "batch": 3, "kv_dtype": "fp8", "engine": "full", "quantization": "fp8", "tp": 8}
    cache, weights = (compute(graph, claim(name, 1, **given)) for name in ("kv_cache_bytes", "weight_bytes"))
    planned = plan(graph, **given)
    assert (cache, weights) == (planned.kv_cache.bytes, planned.weights.bytes)
    assert condition(claim("fits", True, on="8xH100", **given)) == (
        "on 8xH100, fp8, 100,000 tokens, batch 3, KV in fp8, tp 8, engine full"
    )


def test_dense_models_have_no_experts_and_text_models_no_tiles(compiled: Compile) -> None:
    graph = compiled("mobilellm-r1-950m")
    for quantity in ("num_experts", "vision_params", "tokens_per_tile"):
        assert compute(graph, claim(quantity, 1)) == 0


def test_a_number_holds_within_its_tolerance_and_not_beyond() -> None:
    rounded = claim("total_params", 100, tolerance=0.05)
    assert [holds(rounded, computed) for computed in (94, 95, 105, 106)] == [False, True, True, False]


def test_a_published_context_is_a_bound_that_the_plan_must_reach() -> None:
    reached = claim("max_context", 1000, on="8xH100", tolerance=0)
    assert [holds(reached, computed) for computed in (999, 1000, 5000)] == [False, True, True]


def test_no_fit_can_be_claimed_as_well(compiled: Compile) -> None:
    wrong, right = (claim("fits", value, on="2xH100-NVL") for value in (True, False))
    computed = compute(compiled("scout"), right)
    assert (holds(wrong, computed), holds(right, computed)) == (False, True)


def test_differences_are_relative_to_the_claim() -> None:
    assert relative_difference(200, 150) == -0.25
    assert relative_difference(0, 150) is None
    assert relative_difference(True, False) is None


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{quantity: fits, value: true, on: 1xH1000, source: me}", "H1000"),
        ("{quantity: weight_bytes, value: 1, quantization: int3, source: me}", "int3"),
        ("{quantity: kv_cache_bytes, value: 1, context: 99999999, source: me}", "context"),
    ],
)
def test_a_claim_that_cannot_be_computed_is_named(compiled: Compile, written: str, words: str) -> None:
    good = "{quantity: num_layers, value: 48, source: me}"
    graph: LayerGraph = compiled("scout", f"claims=[{good}, {written}]")
    with pytest.raises(UserError, match="claims\\[1\\]") as caught:
        verify(graph)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{quantity: fits, value: true, source: me}", "`on`"),
        ("{quantity: fits, value: 3, on: 1xH100, source: me}", "true or false"),
        ("{quantity: total_params, value: true, source: me}", "needs a number"),
        ("{quantity: train_flops_per_second_per_gpu, value: 4.0e+14, source: me}", "needs `on`"),
        ("{quantity: total_params, value: 3, precision: fp8, source: me}", "precision"),
        *(
            (f"{{quantity: train_flops_per_second_per_gpu, value: 4.0e+14, on: 8xH100, {one}, source: me}}", "serving")
            for one in ("quantization: fp8", "kv_dtype: fp8", "engine: vllm")
        ),
    ],
)
def test_a_claim_that_says_nothing_to_check_is_refused_with_the_spec(
    compiled: Compile, written: str, words: str
) -> None:
    with pytest.raises(UserError, match="claims\\[0\\]") as caught:
        compiled("scout", f"claims=[{written}]")
    assert words in str(caught.value)


def test_only_computed_values_that_rest_on_estimates_are_marked(compiled: Compile) -> None:
    by_quantity = {check.quantity: check.rests_on_estimates for check in verify(compiled("behemoth")).checks}
    assert by_quantity == {
        "active_params": True,
        "num_experts": False,
        "total_params": True,
        "train_flops_per_second_per_gpu": True,
    }
    assert not any(check.rests_on_estimates for check in verify(compiled("llama-guard-4-12b")).checks)


def test_the_page_counts_what_does_not_hold(compiled: Compile) -> None:
    text = to_text(verify_page(verify(compiled("articles/maverick"))))
    assert "claims do not hold" in text.splitlines()[0]
    assert "NO" in text
    assert "holds, by accident" in text


def test_a_model_without_claims_says_so(compiled: Compile) -> None:
    text = to_text(verify_page(verify(compiled("scout", "claims=[]"))))
    assert "makes no claims" in text
