"""Refits every efficiency factor and writes planners/catalog/efficiency/*.yaml: `python -m planners.evidence`.

Only rows marked `calibrate` are used. It takes about two minutes on one core and needs nothing but the packaged rows.
"""

import sys
from collections.abc import Mapping, Sequence
from math import exp
from pathlib import Path

from planners.evidence import fit_serving as serving
from planners.evidence import fit_training as training
from planners.evidence.deployments import ServingCase, serving_case
from planners.evidence.rows import Row, published_rows
from planners.evidence.spread import Spread
from planners.timing.efficiency import ServingEfficiency

FOLDER = Path(__file__).parents[1] / "catalog" / "efficiency"
ENGINES: dict[str, tuple[str, ...]] = {
    "vllm": ("vllm-hybrid", "ideal", "full"),
    "tensorrt-llm": (),
    "sglang": ("sglang-hybrid",),
}
"""The further engines that a file is for: cache policies without an engine of their own go with vLLM's factors."""
SECONDS = ("layer", "moe_layer", "wide_layer", "collective", "host_step", "host_sequence", "request")
_DOCUMENT = "ai-dynamo/aiconfigurator systems/silicon_sample.csv (SemiAnalysis InferenceMAX runs)"
_HEAD = "# Written by `python -m planners.evidence` from rows marked calibrate in planners/evidence/published.csv.\n"


def main() -> int:
    """Fit and write everything; prints what was written."""
    FOLDER.mkdir(exist_ok=True)
    rows = published_rows()
    for engine in ENGINES:
        _write(f"{engine}.yaml", serving_text(engine, rows))
    for name, text in training_texts(rows).items():
        _write(f"{name}.yaml", text)
    return 0


def _write(name: str, text: str) -> None:
    (FOLDER / name).write_text(_HEAD + text, encoding="utf-8")
    sys.stdout.write(f"{FOLDER / name}\n")


def serving_text(engine: str, rows: Sequence[Row]) -> str:
    """The YAML of an engine's factors, fitted on `rows`."""
    bench = serving.Bench(engine, serving.samples_of(rows, engine))
    fitted = serving.fit(bench, start_of(engine))
    errors = serving.leave_one_out(bench, fitted)
    cases = [sample.case for sample in bench.samples]
    lines = [
        f"name: {engine}",
        f"aliases: [{', '.join(ENGINES[engine])}]",
        f"description: time of {engine}, fitted on {len(cases)} published figures",
        f"engines: [{', '.join((engine, *ENGINES[engine]))}]",
        f"source: {_DOCUMENT}",
        f"hardware: [{', '.join(sorted({case.hardware for case in cases}))}]",
        f"models: [{', '.join(sorted({case.model for case in cases}))}]",
        *(f"{name}: {getattr(fitted, name):.4g}" for name in serving.PRIORS if name not in SECONDS),
        *(f"{name}: {1e6 * getattr(fitted, name):.4f} us" for name in SECONDS),
        f"wide_from: {serving.WIDE_FROM}",
        *_notes(_serving_notes(engine, cases, rows)),
        *_errors(errors),
    ]
    return "\n".join(lines) + "\n"


def start_of(engine: str) -> ServingEfficiency:
    """The expected factors, where a fit begins."""
    expected = {name: at for name, (at, _) in serving.PRIORS.items()}
    identity = {"name": engine, "description": engine, "engines": (engine,), "source": _DOCUMENT}
    empty: dict[str, object] = {"hardware": (), "models": (), "wide_from": serving.WIDE_FROM}
    return ServingEfficiency.model_validate({**identity, **empty, **expected})


def _serving_notes(engine: str, cases: Sequence[ServingCase], rows: Sequence[Row]) -> list[str]:
    routed = any("deepseek" in case.model for case in cases)
    midway = "no routed model was among the rows: moe_layer lies midway between layer and SGLang's DeepSeek blocks"
    notes = [] if routed else [midway]
    reasons = {serving.unfit(row) for row in rows if row.calibrates and row.family == "SRV" and _ran(row, engine)}
    return notes + sorted(f"calibration rows left out: {reason}" for reason in reasons if reason)


def _ran(row: Row, engine: str) -> bool:
    case = serving_case(row)
    return isinstance(case, ServingCase) and case.engine == engine


def training_texts(rows: Sequence[Row]) -> dict[str, str]:
    """The YAML of every hardware family's training factors, fitted together."""
    samples = training.training_samples(rows)
    point = training.fit(samples)
    errors = training.leave_one_out(samples, point)
    values = {name: exp(value) for name, value in zip(training.NAMES, point, strict=True)}
    documents = sorted({sample.row.document for sample in samples})
    return {
        f"train-{family}": "\n".join(
            [
                f"name: train-{family}",
                f"aliases: [{', '.join('train-' + member for member in members)}]",
                f"description: training steps on {family}, fitted on {len(samples)} published figures",
                f"source: {'; '.join(documents)}",
                f"hardware: [{', '.join(members)}]",
                _mapping("matmul", {dtype: values[f"{family}.{dtype}"] for dtype in training.MATMULS[family]}),
                *(f"{name}: {values[name]:.4g}" for name in training.SHARED if name not in training.TRAINERS),
                _mapping("trainers", {name: values[name] for name in training.TRAINERS}),
                _mapping("most_devices", training.most_devices(samples, family)),
                *_errors(errors),
            ]
        )
        + "\n"
        for family, members in training.FAMILIES.items()
    }


def _mapping(name: str, values: Mapping[str, float]) -> str:
    rows = (f"{key}: {value if isinstance(value, int) else format(value, '.4g')}" for key, value in values.items())
    return f"{name}: {{{', '.join(rows)}}}"


def _notes(notes: Sequence[str]) -> list[str]:
    return ["notes:", *(f'  - "{note}"' for note in notes)] if notes else []


def _errors(errors: Sequence[Spread]) -> list[str]:
    """Leave-one-source-out errors as YAML."""
    return [
        "errors:",
        *(
            f"  - {{metric: {e.metric}, median: {e.median:.4f}, p90: {e.p90:.4f}, "
            f"num_rows: {e.num_rows}, num_sources: {e.num_sources}}}"
            for e in errors
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
