"""`l4spec plan --emit`: exit codes, where reasons go, and what is asked of the user."""

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm", "k8s"])
def test_a_launch_is_all_that_is_printed(run: Run, engine: str) -> None:
    result = run("plan", "scout", "--gpus", "8xH100", "--emit", engine)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "meta-llama/Llama-4-Scout-17B-16E" in result.stdout
    assert "longest context" not in result.stdout


def test_a_launch_is_planned_by_the_engine_s_own_policy_unless_another_is_asked(run: Run) -> None:
    assert "planned as engine vllm-hybrid" in run("plan", "scout", "--gpus", "8xH100", "--emit", "vllm").stdout
    other = run("plan", "scout", "--gpus", "8xH100", "--emit", "vllm", "--engine", "ideal").stdout
    assert "planned by the cache policy of ideal" in other
    assert "--gpu-memory-utilization" not in other, "ideal plans the whole device, which vLLM does not take"
    off = run("plan", "scout", "--gpus", "8xH100", "--emit", "vllm", "--engine", "vllm").stdout
    assert "--disable-hybrid-kv-cache-manager" in off


def test_what_does_not_fit_is_not_emitted(run: Run) -> None:
    result = run("plan", "scout", "--gpus", "2xH100", "--emit", "vllm")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "does not fit on 2xH100" in result.stderr
    assert "too much" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--emit", "vllm"], "--emit needs --gpus"),
        (["--gpus", "8xH100", "--emit", "vllm", "-v"], "--emit prints no report: leave --verbose out"),
        (["--gpus", "8xH100", "--emit", "vllm", "--format", "json"], "leave --format out"),
        (["--gpus", "8xH100", "--model", "me/mine"], "--model needs --emit"),
        (["--gpus", "8xH100", "--emit", "vllm", "--model", "-x"], "'-x' names no checkpoint"),
        (["--gpus", "8xH100", "--emit", "tensorrt-llm", "--tp", "4", "--ep", "2"], "cannot express this plan"),
        (["--gpus", "12xH100", "--tp", "4", "--pp", "3", "--emit", "vllm"], "does not fill whole hosts of 8"),
        (["--gpus", "8xH100", "--emit", "torchtitan"], "give --mode train"),
        (["--gpus", "8xH100", "--precision", "fp8"], "--precision: needs --mode train"),
        (["--gpus", "8xH100", "--mode", "train", "--precision", "fp7"], "unknown precision 'fp7'"),
    ],
)
def test_what_cannot_be_emitted_is_an_error_of_the_user(run: Run, arguments: list[str], message: str) -> None:
    result = run("plan", "scout", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_the_table_of_all_models_is_not_emitted(run: Run) -> None:
    result = run("plan", "--emit", "vllm")
    assert result.exit_code == 2
    assert "--emit needs a SPEC" in result.stderr


def test_a_changed_model_is_not_given_the_published_checkpoint(run: Run) -> None:
    result = run("plan", "scout", "--set", "text.parts.moe.num_experts=32", "--gpus", "16xH100", "--emit", "vllm")
    assert result.exit_code == 0, result.stderr
    assert "meta-llama/" not in result.stdout
    assert "--model names yours" in result.stdout
