"""Rows that are not among the published ones: every setting is replayed, or refused with a reason."""

from dataclasses import fields
from itertools import product

import pytest

from planners.evidence.replay import Prediction, predict
from planners.evidence.rows import Row

SCOUT = {
    "id": "SRV-9999",
    "model": "Llama-4-Scout-17B-16E-Instruct-FP8",
    "hardware": "H200-141GB",
    "n_gpus": "8",
    "precision_weights": "fp8",
    "precision_kv": "fp8",
    "tp": "8",
    "pp": "1",
    "ep": "1",
    "dp": "1",
    "batch_or_concurrency": "16",
    "isl": "1024",
    "osl": "1024",
    "metric": "tpot_mean",
    "value": "10",
    "unit": "ms",
    "source": "somebody",
    "notes": "vllm 0.10",
    "split": "test",
}


def row(**changed: str) -> Row:
    columns = SCOUT | changed
    return Row(**{field.name: columns[field.name] for field in fields(Row)})


def throughput(**changed: str) -> float:
    prediction = predict(row(metric="output_throughput_per_gpu", unit="tok/s/GPU", **changed))
    assert prediction.predicted is not None, prediction.reason
    return prediction.predicted


@pytest.mark.parametrize("model", ["Llama-4-Scout-17B-16E", "Llama-4-Maverick-17B-128E-Instruct", "Llama-5"])
def test_any_setting_of_llama_4_serving_is_replayed_or_refused_with_a_reason(model: str) -> None:
    predictions: list[Prediction] = []
    for hardware, weights, (gpus, tp, ep, pp, dp), clients, metric in product(
        ["H100-80GB", "B200-180GB", "L40S-48GB"],
        ["fp8", "nvfp4", "bf16", "w8a8", ""],
        [("8", "8", "1", "1", "1"), ("8", "1", "8", "1", "8"), ("8", "2", "", "2", "2"), ("5", "5", "1", "1", "1")],
        ["64", "", "2 req/s"],
        ["tpot_mean", "output_throughput_total", "p99_ttft"],
    ):
        changed = {"hardware": hardware, "precision_weights": weights, "n_gpus": gpus, "tp": tp, "ep": ep, "pp": pp}
        predictions.append(predict(row(model=model, dp=dp, batch_or_concurrency=clients, metric=metric, **changed)))
    assert all((p.predicted is None) == bool(p.reason) for p in predictions)
    assert all(p.predicted > 0 for p in predictions if p.predicted is not None)
    assert any(p.predicted for p in predictions) is (model != "Llama-5")


def test_a_layout_that_the_model_does_not_allow_is_not_predicted() -> None:
    assert "does not divide 40" in predict(row(n_gpus="16", tp="16")).reason
    assert "needs experts" in predict(row(model="Llama-3.3-70B", tp="1", ep="8")).reason


def test_a_format_is_read_in_any_case_and_never_guessed() -> None:
    assert predict(row(precision_weights="FP8", precision_kv="")).predicted == predict(row()).predicted
    assert "number format" in predict(row(precision_weights="")).reason


def test_a_row_without_clients_is_not_predicted() -> None:
    assert "neither clients nor" in predict(row(batch_or_concurrency="")).reason


def test_servers_beside_each_other_share_the_clients() -> None:
    four = predict(row(tp="2", dp="4", batch_or_concurrency="64")).predicted
    assert four == predict(row(n_gpus="2", tp="2", batch_or_concurrency="16")).predicted


def test_throughput_at_few_clients_is_that_of_the_clients_and_not_the_most() -> None:
    few, many, most = (throughput(batch_or_concurrency=clients) for clients in ("4", "256", ""))
    assert few < many
    assert few < most
    total = predict(row(metric="output_throughput_total", unit="tok/s", batch_or_concurrency="4")).predicted
    assert total == pytest.approx(8 * few)


def test_a_pipeline_decodes_a_micro_batch_a_stage() -> None:
    """Two stages of tp 4 over 16 clients: the time of tp 4 alone over 8 clients, with twice the tokens."""
    piped, alone = ({"tp": "4", "pp": pp, "n_gpus": gpus} for pp, gpus in (("2", "8"), ("1", "4")))
    alone_ms = predict(row(batch_or_concurrency="8", **alone)).predicted
    piped_ms = predict(row(**piped)).predicted
    assert alone_ms is not None
    assert piped_ms is not None
    assert alone_ms < piped_ms < 1.005 * alone_ms  # and is sent on once: 8 rows of 10 kB, and a call
    assert throughput(**piped) == pytest.approx(throughput(batch_or_concurrency="8", **alone), rel=0.005)
