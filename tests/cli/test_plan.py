"""`l4spec plan` and `compare`: the facts, the exit codes, and a stable JSON document."""

import json

import pytest

from tests.cli.conftest import Run


def test_plan_scout_answers_on_one_screen(run: Run) -> None:
    result = run("plan", "scout", "--gpus", "8xH100")
    assert result.exit_code == 0, result.stderr
    assert "fits on 8xH100" in result.stdout.splitlines()[0]
    for fact in ("108.64B", "17.17B", "202.36 GiB", "32.28 GFLOP", "longest context", "largest batch", "fastest"):
        assert fact in result.stdout
    assert len(result.stdout.splitlines()) <= 24


def test_a_path_works_like_a_name(run: Run) -> None:
    by_name, by_path = run("plan", "scout"), run("plan", "specs/scout.yaml")
    assert by_name.exit_code == 0
    assert by_name.stdout == by_path.stdout


def test_what_does_not_fit_leaves_with_3_and_its_answer(run: Run) -> None:
    result = run("plan", "scout", "--gpus", "2xH100")
    assert result.exit_code == 3
    assert "does not fit" in result.stdout.splitlines()[0]
    assert result.stderr == ""


def test_without_gpus_nothing_limits_and_nothing_fails(run: Run) -> None:
    assert run("plan", "behemoth").exit_code == 0


def test_json_has_the_documented_keys_with_exact_integers(run: Run) -> None:
    result = run("plan", "scout", "--gpus", "8xH100", "--format", "json")
    plan = json.loads(result.stdout)
    assert plan["params"]["total"] == 108_641_793_536
    assert plan["params"]["active"] == 17_172_894_720
    assert plan["params"]["active_without_embedding"] == 16_138_408_960
    assert plan["flops"]["forward_per_token"] == 32_275_824_640
    assert plan["kv_cache"]["bytes_per_token_unbounded"] == 196_608
    assert plan["kv_cache"]["bytes_per_token_global"] == 49_152
    assert plan["kv_cache"]["policy"] == "ideal"
    assert plan["kv_cache"]["dtype"] == "bf16"
    assert plan["weights"]["bytes"] == 217_283_587_072
    assert set(plan["layout"]) == {"tp", "ep", "pp", "dp", "cp"}
    device = plan["memory_per_device"]
    parts = ("weights_bytes", "kv_cache_bytes", "activation_bytes", "reserved_bytes")
    assert device["total_bytes"] == sum(device[part] for part in parts) <= device["capacity_bytes"]
    assert plan["fits"] is True
    assert {"reasons", "max_context", "max_batch", "l4spec_plan"} <= plan.keys()


def test_options_reach_the_planner(run: Run) -> None:
    options = "--gpus 8xH100 -q fp8 --kv-dtype fp8 --context 100000 --batch 2 --tp 4 --pp 2 --engine full --tiles 5"
    result = run(
        "plan", "scout", *options.split(), "--prefill-chunk", "2048", "--memory-fraction", "0.9", "--format", "json"
    )
    plan = json.loads(result.stdout)
    asked = plan["deployment"]
    expected = {"quantization": "fp8", "kv_dtype": "fp8", "context": 100_000, "batch": 2, "engine": "full"}
    assert expected.items() <= asked.items()
    assert (asked["num_tiles"], asked["prefill_chunk"], asked["memory_fraction"]) == (5, 2048, 0.9)
    assert plan["layout"] == {"tp": 4, "ep": 1, "pp": 2, "dp": 1, "cp": 1}


def test_objective_and_training_options_reach_the_planner(run: Run) -> None:
    options = (
        "--gpus 64xH100 --mode train --zero-stage 3 --optimizer adamw-bf16 --checkpointing none --objective min-gpus"
    )
    asked = json.loads(run("plan", "tiny/scout", *options.split(), "--format", "json").stdout)["deployment"]
    assert (asked["mode"], asked["zero_stage"], asked["optimizer"]) == ("train", 3, "adamw-bf16")
    assert (asked["activation_checkpointing"], asked["objective"]) == ("none", "min-gpus")


def test_images_count_as_many_tiles_as_the_model_allows(run: Run) -> None:
    plan = json.loads(run("plan", "scout", "--images", "2", "--tiles", "1", "--format", "json").stdout)
    assert plan["deployment"]["num_tiles"] == 2 * 17 + 1


def test_overrides_change_the_model(run: Run) -> None:
    wide = run("plan", "scout", "--set", "text.parts.moe.num_experts=32", "--format", "json")
    routed = json.loads(wide.stdout)["params"]["by_part"]["routed_experts"]
    assert routed == 2 * 96_636_764_160


@pytest.mark.parametrize("option", ["-v", "--explain"])
def test_more_detail_comes_behind_the_same_answer(run: Run, option: str) -> None:
    short, long = (run("plan", "scout", "--gpus", "8xH100", *more).stdout for more in ((), (option,)))
    assert long.startswith(short.rstrip("\n"))
    assert "108,641,793,536" in long or "routed experts" in long


def test_markdown_is_markdown(run: Run) -> None:
    text = run("plan", "scout", "--gpus", "8xH100", "-v", "--format", "markdown").stdout
    assert "## Parameters by part" in text
    assert "|---" in text


def test_all_models_are_planned_without_a_spec(run: Run) -> None:
    result = run("plan", "--gpus", "8xH100")
    assert result.exit_code == 0, result.stderr
    for word in ("Scout", "Maverick", "~1.95T", "bf16", "fp8", "int4", "least GPUs"):
        assert word in result.stdout


def test_the_table_of_all_models_as_json_has_a_row_a_model_and_precision(run: Run) -> None:
    table = json.loads(run("plan", "-q", "fp8", "--format", "json").stdout)
    assert [row["quantization"] for row in table["rows"]] == ["fp8"] * 3
    assert table["gpus"] == "8xH100"


def test_compare_puts_models_side_by_side(run: Run) -> None:
    table = run("compare", "scout", "maverick", "--gpus", "8xH100", "-q", "fp8")
    assert table.exit_code == 0, table.stderr
    assert "108.64B" in table.stdout
    assert "401.58B" in table.stdout
    document = json.loads(run("compare", "scout", "maverick", "--format", "json").stdout)
    assert [model["plan"]["params"]["total"] for model in document["models"]] == [108_641_793_536, 401_583_781_376]


def test_compare_names_the_model_that_cannot_be_planned(run: Run) -> None:
    result = run("compare", "scout", "mobilellm-r1-950m", "--context", "1000000")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: mobilellm-r1-950m: --context")


def test_a_scenario_is_planned_without_simulating(run: Run) -> None:
    plan = json.loads(run("plan", "scenarios/guarded", "--format", "json").stdout)
    assert plan["num_gpus"] == 9
    assert [server["key"] for server in plan["servers"]] == ["scout", "guard"]
    assert [stage["name"] for stage in plan["stages"]] == ["prompt-guard", "guard-prompt", "answer", "guard-answer"]
    assert plan["ttft_seconds"] < plan["e2e_seconds"]
    html = run("plan", "scenarios/guarded", "--format", "html").stdout
    assert html.startswith("<!DOCTYPE html>")


def test_a_scenario_takes_no_planning_option_of_its_models(run: Run) -> None:
    result = run("plan", "scenarios/guarded", "--gpus", "8xH100", "--tp", "4")
    assert result.exit_code == 2
    assert "--gpus" in result.stderr
    assert "--tp" in result.stderr
    assert "--set" in result.stderr


@pytest.mark.parametrize("document", ["scenarios/guarded", "recipes/scout"])
def test_no_option_of_a_spec_s_plan_is_left_aside_silently(run: Run, document: str) -> None:
    for options in (("--emit", "vllm"), ("-v",), ("--explain",), ("--model", "x")):
        result = run("plan", document, *options)
        assert result.exit_code == 2
        assert "is for specs" in result.stderr


def test_drafts_are_on_the_page_with_their_arithmetic_and_in_no_launch(run: Run) -> None:
    asked = ("plan", "deepseek-v3", "--gpus", "8xH200", "--engine", "vllm-hybrid", "--draft-acceptance", "0.85,0.7")
    page = " ".join(run(*asked, "--explain").stdout.split())
    assert "2 by the spec's module, accepted 85 %, 70 %: 2.445 tokens a step" in page
    assert "1 + 0.85 + 0.85 × 0.7" in page
    assert "draft weights" in page
    launched = run(*asked, "--emit", "vllm")
    assert launched.exit_code == 2
    assert "launches with drafts are not written" in launched.stderr
    detail = " ".join(run("plan", "deepseek-v3", "-v").stdout.split())
    assert "not counted: 13.46B parameters in modules of multi-token prediction" in detail
