"""Fits the factors of static batches and writes the batches that `l4spec accuracy` replays.

    python benchmarks/static_batches.py FILE.csv

FILE is the table of argonne-lcf/LLM-Inference-Bench 4211f5d (BSD-3): columns Hardware, Num of Hardware, Framework,
Model, Input Output Length, Batch Size, Latency (s), Throughput. Half of the models are fitted, the others judge. Writes
planners/catalog/static_batch/*.yaml and planners/evidence/static_batches.csv. Needs scipy (extra `fit`); a minute.
"""

import csv
import sys
from collections import Counter, defaultdict
from dataclasses import astuple, fields
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy.optimize import least_squares

from planners.evidence.static_batches import BATCHES, FITTED, MODELS, Batch, is_possible, load_of, model_of
from planners.timing.layer_demand import Step
from planners.timing.static_batch import StaticBatchFactors

FOLDER = Path(__file__).parents[1] / "planners" / "catalog" / "static_batch"
SOURCE = "argonne-lcf/LLM-Inference-Bench 4211f5d, throughput of static batches (BSD-3)"
ENGINES = {
    "vLLM": "vllm",
    "TensorRT-LLM": "tensorrt-llm",
    "llama.cpp": "llama.cpp",
    "Deepspeed-MII": "deepspeed-mii",
}
GPUS = {"Nvidia A100 GPU": "a100-40gb", "Nvidia H100 GPU": "h100-sxm"}
"""The table does not say which A100; a 70B model in 16 bits needs four of them, and Argonne's Polaris has 40 GB."""
SHARES = ("memory", "cache", "prefill", "decode", "attention", "links")
SECONDS = ("collective", "block", "step", "sequence", "request")
EXPECTED = np.log([0.8, 0.6, 0.5, 0.4, 0.3, 0.5, 1e-5, 3e-5, 1e-3, 2e-5, 0.05])
SPREAD = np.array([0.4, 0.8, 0.6, 0.8, 1, 0.6, 1.2, 1.2, 1.5, 2, 1.5])
_MOST_SHARE = 1.5


def read(path: Path) -> list[Batch]:
    """Every batch of a model with a spec whose numbers agree; says what was left out. Repeated rows are averaged."""
    repeated: dict[tuple[object, ...], list[float]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            model, tokens, size = row["Model"].split("/")[1], int(row["Input Output Length"]), int(row["Batch Size"])
            if model not in MODELS:
                left_out["no spec of the model"] += 1
            elif abs(2 * tokens * size / float(row["Latency"]) / float(row["Throughput"]) - 1) > 0.02:
                left_out["latency and throughput disagree"] += 1
            else:
                place = (ENGINES[row["Framework"]], GPUS[row["Hardware"]], int(row["Num of Hardware"]))
                repeated[(*place, model, tokens, size)].append(float(row["Latency"]))
    names = [field.name for field in fields(Batch)]
    batches = [Batch(**dict(zip(names, (*key, fmean(times)), strict=True))) for key, times in repeated.items()]  # type: ignore[arg-type]
    possible = [batch for batch in batches if is_possible(batch)]
    left_out["faster than reading the weights"] = len(batches) - len(possible)
    sys.stdout.write(f"{len(possible)} batches; left out: {dict(left_out)}\n")
    return possible


def uses(batch: Batch) -> tuple[np.ndarray, float, float]:
    """Coefficients of each factor for a batch (as in `StaticBatchFactors.seconds`)."""
    model, load = model_of(batch), load_of(batch)
    steps = load.output * load.waves
    sent = load.batch
    prompts = model.used(Step(prompt_tokens=sent * load.prompt, prompt_length=load.prompt, logit_rows=sent))
    token = model.used(Step(decode=load.decoding, context=load.prompt + load.output / 2))

    def both(name: str) -> float:
        return float(getattr(prompts, name) + steps * getattr(token, name))

    columns = [both("weight_read"), both("cached"), prompts.matmul, steps * token.matmul, both("attention")]
    columns += [both("links"), both("collectives"), both("blocks"), steps, steps * load.decoding, 1.0]
    return np.array(columns), batch.seconds, steps


def fitted(batches: list[Batch]) -> np.ndarray:
    """The factors of least robust cost, 10 % within which a batch is as good as met."""
    rows = [uses(batch) for batch in batches]
    table, measured = np.array([row[0] for row in rows]), np.log([row[1] for row in rows])
    signs = np.array([-1.0] * len(SHARES) + [1.0] * len(SECONDS))

    def residuals(point: np.ndarray) -> np.ndarray:
        pulls = 0.3 * (point - EXPECTED) / SPREAD
        return np.concatenate([np.log(table @ np.exp(signs * point)) - measured, pulls])

    most = EXPECTED + 4 * SPREAD
    most[: len(SHARES)] = np.minimum(most[: len(SHARES)], np.log(_MOST_SHARE))
    bounds = (EXPECTED - 4 * SPREAD, most)
    return np.asarray(np.exp(least_squares(residuals, EXPECTED, loss="soft_l1", f_scale=0.1, bounds=bounds).x))


def main(path: str) -> int:
    """Fit, judge and write; prints the errors."""
    groups: dict[str, dict[str, list[Batch]]] = defaultdict(lambda: defaultdict(list))
    batches = read(Path(path))
    for batch in batches:
        groups[batch.engine][batch.hardware].append(batch)
    FOLDER.mkdir(exist_ok=True)
    for engine, machines in sorted(groups.items()):
        lines = [_machine(engine, gpu, own) for gpu, own in sorted(machines.items())]
        models = sorted({b.model for own in machines.values() for b in own if b.model in FITTED})
        text = [
            "# Written by `python benchmarks/static_batches.py` from published batches.",
            f"name: {engine}",
            f"description: time of {engine}'s static batches, fitted on {', '.join(models)}",
            f'source: "{SOURCE}"',
            f"models: [{', '.join(models)}]",
            "machines:",
            *lines,
        ]
        (FOLDER / f"{engine}.yaml").write_text("\n".join(text) + "\n", encoding="utf-8")
    with BATCHES.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Batch)])
        judges = sorted((batch for batch in batches if batch.model not in FITTED), key=astuple)
        writer.writerows([*astuple(batch)[:-1], f"{batch.seconds:.5g}"] for batch in judges)
    return 0


def _machine(engine: str, gpu: str, batches: list[Batch]) -> str:
    known = [batch for batch in batches if batch.model in FITTED]
    values = dict(zip((*SHARES, *SECONDS), map(float, fitted(known)), strict=True))
    written = {name: f"{1e6 * value:.2f} us" if name in SECONDS else f"{value:.4g}" for name, value in values.items()}
    factors = StaticBatchFactors.model_validate({"hardware": gpu, "num_rows": len(known), **values, **_text(written)})
    for name, own in (("fitted", known), ("judged", [b for b in batches if b.model not in FITTED])):
        errors = [abs(factors.seconds(model_of(b), load_of(b)) / b.seconds - 1) for b in own]
        sys.stdout.write(
            f"{engine} {gpu} {name}: {len(own)} batches, median {np.median(errors):.1%}, "
            f"p90 {np.quantile(errors, 0.9):.1%}\n"
        )
    numbers = ", ".join(f"{name}: {value}" for name, value in written.items())
    return f"  - {{hardware: {gpu}, {numbers}, num_rows: {len(known)}}}"


def _text(written: dict[str, str]) -> dict[str, str]:
    """The factors that are written with a unit."""
    return {name: written[name] for name in SECONDS}


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".csv"):
        raise SystemExit(__doc__)
    raise SystemExit(main(sys.argv[1]))
