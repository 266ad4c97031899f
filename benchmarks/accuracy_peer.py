"""Published serving figures beside what l4spec and NVIDIA's AIConfigurator predict for them, on the same rows.

    python -m venv peer
    peer/bin/pip install aiconfigurator==0.12.0
    python -m benchmarks.accuracy_peer peer/bin/python [--json] > docs/peers.md

Rows are those of `planners/evidence/published.csv` with serving times or maximum throughput that both can predict: one
replica by tensor parallelism, a fixed number of clients. The peer is asked in its aggregated mode (`cli_estimate`) for
the mean lengths, number formats, engine and layout that `l4spec accuracy` takes from the row; where a row publishes the
most throughput, both take the best of the same numbers of clients. The peer has no number fitted on these rows that we
know of, but one of their sources is its own repository; ours are fitted on rows marked `calibrate`.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

from planners.evidence.deployments import ServingCase, serving_case
from planners.evidence.replay import THROUGHPUT, capacity_of, predict
from planners.evidence.rows import Row, published_rows
from planners.evidence.spread import percentile
from planners.timing.likeness import ROWS_OF_A_P90

MODELS = {
    "llama-3.1-70b": "meta-llama/Meta-Llama-3.1-70B",
    "llama-3.1-8b": "meta-llama/Meta-Llama-3.1-8B",
    "llama-3.1-405b": "meta-llama/Meta-Llama-3.1-405B",
    "deepseek-v3": "deepseek-ai/DeepSeek-V3",
    "maverick": "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
    "scout": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
    "qwen3-32b": "Qwen/Qwen3-32B",
}
"""Names under which the peer carries the configs of our specs."""
GPUS = {"h100-sxm": "h100_sxm", "h200": "h200_sxm", "a100-80gb": "a100_sxm", "b200": "b200_sxm", "l40s": "l40s"}
ENGINES = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "trtllm"}
FORMATS = {"fp8": "fp8", "bf16": "bfloat16"}
QUANTITIES = {
    "tpot_mean": "time per output token",
    "itl_mean": "time per output token",
    "ttft_mean": "time to first token",
    **dict.fromkeys(THROUGHPUT, "maximum throughput"),
}
FEWEST_CLIENTS = 8
ASK = """
import json, logging, sys
logging.disable(logging.CRITICAL)
from aiconfigurator.cli.api import cli_estimate
for line in sys.stdin:
    asked = json.loads(line)
    answer = {"id": asked.pop("id")}
    try:
        got = cli_estimate(**asked)
        answer |= {"ttft": got.ttft, "tpot": got.tpot, "per_gpu": got.tokens_per_second_per_gpu}
    except Exception as error:
        answer["refused"] = str(error).partition(' with ')[0].splitlines()[0] or type(error).__name__
    print("ANSWER " + json.dumps(answer), flush=True)
"""
"""Run by the peer's own Python: one JSON request a line, one answer each."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A row with both predictions in the row's unit."""

    row: Row
    model: str
    ours: float
    theirs: float

    def errors(self) -> tuple[float, float]:
        """Relative errors, ours and the peer's."""
        return self.ours / self.row.published - 1, self.theirs / self.row.published - 1


def requests_of(row: Row, case: ServingCase) -> list[dict[str, Any]]:
    """The peer's requests for a row, one for each number of clients; none if it cannot express the row."""
    layout = case.layout
    known = case.model in MODELS and case.hardware in GPUS and case.engine in ENGINES and case.quantization in FORMATS
    if not known or layout.ep > 1 or layout.pp > 1 or row.metric not in QUANTITIES or case.rate is not None:
        return []
    clients = _clients(row, case)
    asked: dict[str, Any] = {
        "model_path": MODELS[case.model],
        "system_name": GPUS[case.hardware],
        "backend_name": ENGINES[case.engine],
        "isl": round(case.prompt),
        "osl": round(case.output),
        "tp_size": layout.tp,
        "kvcache_quant_mode": FORMATS[case.kv_dtype],
    }
    if case.model == "deepseek-v3":
        asked |= {"moe_tp_size": layout.tp, "moe_ep_size": 1}
    else:
        asked["gemm_quant_mode"] = FORMATS[case.quantization]
    if case.model in ("maverick", "scout", "mixtral-8x7b"):
        asked |= {"moe_tp_size": layout.tp, "moe_ep_size": 1, "moe_quant_mode": FORMATS[case.quantization]}
    return [{"id": f"{row.id} {number}", **asked, "batch_size": number} for number in clients]


def _clients(row: Row, case: ServingCase) -> list[int]:
    """The row's clients; for the most throughput, the numbers that `most_throughput` tries."""
    if row.metric not in THROUGHPUT or case.concurrency is not None:
        return [max(1, round(case.concurrency))] if case.concurrency is not None else []
    tried, numbers = float(capacity_of(case)), []
    while tried >= FEWEST_CLIENTS:
        numbers.append(round(tried))
        tried /= 2
    return numbers


def ask(python: str, requests: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The peer's answers by row."""
    text = "".join(json.dumps(each) + "\n" for each in requests)
    done = subprocess.run([python, "-W", "ignore", "-c", ASK], input=text, capture_output=True, text=True, check=True)
    answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in done.stdout.splitlines():
        if line.startswith("ANSWER "):
            answer = json.loads(line.removeprefix("ANSWER "))
            answers[answer.pop("id").split()[0]].append(answer)
    return answers


def theirs_of(row: Row, answers: list[dict[str, Any]]) -> float | None:
    """The peer's prediction in the row's unit; None where it refused."""
    answers = [answer for answer in answers if "refused" not in answer]
    if not answers:
        return None
    if row.metric in THROUGHPUT:
        best = max(answer["per_gpu"] for answer in answers)
        return float(best * (1 if row.unit.endswith("/GPU") else row.number("n_gpus") or 1))
    return float(answers[0]["ttft" if row.metric == "ttft_mean" else "tpot"])


def compare(python: str) -> tuple[list[Compared], dict[str, int]]:
    """All rows that both predict, and why the peer refused others."""
    rows, requests = [], []
    for row in published_rows():
        case = serving_case(row) if row.family in ("SRV", "THR") else None
        if isinstance(case, ServingCase) and (asked := requests_of(row, case)):
            rows.append((row, case))
            requests += asked
    answers = ask(python, requests)
    compared, refused = [], defaultdict[str, int](int)
    for row, case in rows:
        ours, theirs = predict(row).predicted, theirs_of(row, answers[row.id])
        if ours is not None and theirs is not None:
            compared.append(Compared(row, case.model, ours, theirs))
        elif theirs is None:
            refused[answers[row.id][0]["refused"] if answers[row.id] else "no answer"] += 1
    return compared, refused


def groups_of(compared: Iterable[Compared]) -> list[dict[str, Any]]:
    """Errors of both by quantity, split and model, with a line of all models."""
    members: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for each in compared:
        quantity = QUANTITIES[each.row.metric]
        for model in (each.model, "all"):
            members[quantity, each.row.split, model].append(each.errors())
    table = []
    for (quantity, split, model), errors in sorted(members.items()):
        line: dict[str, Any] = {"quantity": quantity, "split": split, "model": model, "rows": len(errors)}
        for name, own in zip(("l4spec", "peer"), zip(*errors, strict=True), strict=True):
            absolute = sorted(map(abs, own))
            line[f"{name}_median"] = percentile(absolute, 50)
            line[f"{name}_p90"] = percentile(absolute, 90) if len(own) >= ROWS_OF_A_P90 else None
            line[f"{name}_bias"] = percentile(sorted(own), 50)
        table.append(line)
    return table


def _cell(share: float | None, *, signed: bool = False) -> str:
    return "-" if share is None else f"{100 * share:{'+' if signed else ''}.1f} %"


def page(table: Iterable[dict[str, Any]], refused: dict[str, int]) -> str:
    """The Markdown page."""
    lines = [
        "# Beside AIConfigurator",
        "",
        "For anyone who asks whether the estimates are better than others': the same published rows, predicted by",
        f"l4spec and by NVIDIA's AIConfigurator 0.12 (measured kernels, PyPI), {date.today().isoformat()}. Written by",
        "`python -m benchmarks.accuracy_peer`.",
        "",
        *_method(),
        "| quantity | split | model | rows | l4spec: median error | p90 | bias "
        "| AIConfigurator: median error | p90 | bias |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in table:
        cells = [line["quantity"], line["split"], line["model"], str(line["rows"])]
        for name in ("l4spec", "peer"):
            cells += [_cell(line[f"{name}_median"]), _cell(line[f"{name}_p90"])]
            cells.append(_cell(line[f"{name}_bias"], signed=True))
        lines.append("| " + " | ".join(cells) + " |")
    if refused:
        lines += ["", "Rows that AIConfigurator refused:", ""]
        lines += [f"- {count}: {reason}" for reason, count in refused.items()]
    return "\n".join(lines) + "\n"


def _method() -> list[str]:
    return [
        "Rows: one replica by tensor parallelism with a number of clients, and maximum throughput, where both take",
        "the best of the same numbers of clients. AIConfigurator estimates its aggregated mode with the lengths,",
        "formats, engine and layout that `l4spec accuracy` takes from the row, at the newest kernels that it carries.",
        "l4spec's factors were fitted on rows marked `calibrate`; those marked `test` are foreign to both.",
        "AIConfigurator's time to first token leaves out the HTTP server, which the rows include.",
        "",
    ]


def main() -> int:
    """Print the page, or the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", help="the Python that has aiconfigurator")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    compared, refused = compare(asked.peer)
    table = groups_of(compared)
    text = json.dumps({"groups": table, "refused": refused}, indent=1) + "\n" if asked.json else page(table, refused)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
