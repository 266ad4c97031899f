"""Refits every efficiency factor and writes planners/catalog/efficiency/*.yaml: `python -m planners.evidence`.

Only rows marked `calibrate` are used. It takes about two minutes on one core and needs nothing but the packaged rows.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from planners.evidence import fit_serving as serving
from planners.evidence import fit_training as training
from planners.evidence import terms
from planners.evidence.deployments import ServingCase, graph_of, serving_case
from planners.evidence.least_squares import FittedTerms
from planners.evidence.rows import Row, published_rows
from planners.evidence.spread import errors_of
from planners.evidence.terms import Term
from planners.latency_types import JudgedRow
from planners.timing.efficiency import ServingEfficiency

FOLDER = Path(__file__).parents[1] / "catalog" / "efficiency"
ENGINES: dict[str, tuple[str, ...]] = {
    "vllm": ("vllm-hybrid", "ideal", "full"),
    "tensorrt-llm": (),
    "sglang": ("sglang-hybrid",),
}
"""The further engines that a file is for: cache policies without an engine of their own go with vLLM's factors."""
_DOCUMENT = "ai-dynamo/aiconfigurator systems/silicon_sample.csv (SemiAnalysis InferenceMAX runs)"
_HEAD = "# Written by `python -m planners.evidence` from rows marked calibrate in planners/evidence/published.csv.\n"


def main() -> int:
    """Fit and write everything; prints the written files."""
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
    base = start_of(engine)
    fitted = serving.fit(bench, base)
    judged = serving.leave_one_out(bench, base, fitted)
    cases = [sample.case for sample in bench.samples]
    lines = [
        f"name: {engine}",
        f"aliases: [{', '.join(ENGINES[engine])}]",
        f"description: time of {engine}, fitted on {len(cases)} published figures",
        f"engines: [{', '.join((engine, *ENGINES[engine]))}]",
        f"source: {_DOCUMENT}",
        f"hardware: [{', '.join(sorted({case.hardware for case in cases}))}]",
        f"models: [{', '.join(sorted({case.model for case in cases}))}]",
        f"routed: {str(any(_is_routed(case.model) for case in cases)).lower()}",
        f"longest: {round(max(case.prompt + case.output for case in cases))}",
        *(_factor(term, fitted.values[term.name]) for term in terms.SERVING),
        f"wide_from: {serving.WIDE_FROM}",
        *_certainty(fitted),
        *_notes(_serving_notes(engine, cases, rows)),
        *_errors(judged),
        *_judged(judged),
    ]
    return "\n".join(lines) + "\n"


def _is_routed(model: str) -> bool:
    return any(node.declaration.routed is not None for node in graph_of(model).nodes)


def start_of(engine: str) -> ServingEfficiency:
    """The expected factors, where a fit begins."""
    expected = {term.name: term.expected for term in terms.SERVING}
    identity = {"name": engine, "description": engine, "engines": (engine,), "source": _DOCUMENT}
    empty: dict[str, object] = {"hardware": (), "models": (), "wide_from": serving.WIDE_FROM}
    return ServingEfficiency.model_validate({**identity, **empty, **expected})


def _serving_notes(engine: str, cases: Sequence[ServingCase], rows: Sequence[Row]) -> list[str]:
    routed = any("deepseek" in case.model for case in cases)
    midway = (
        "no routed model was among the rows: moe_layer lies midway between layer and SGLang's DeepSeek blocks, "
        "moe_request is a guess"
    )
    notes = [] if routed else [midway]
    reasons = {serving.unfit(row) for row in rows if row.calibrates and row.family == "SRV" and _ran(row, engine)}
    return notes + sorted(f"calibration rows left out: {reason}" for reason in reasons if reason)


def _ran(row: Row, engine: str) -> bool:
    case = serving_case(row)
    return isinstance(case, ServingCase) and case.engine == engine


def training_texts(rows: Sequence[Row]) -> dict[str, str]:
    """The YAML of every hardware family's training factors, fitted together."""
    samples = training.training_samples(rows)
    fitted = training.fit(samples)
    judged, values = training.leave_one_out(samples, fitted), fitted.values
    documents = sorted({sample.row.document for sample in samples})
    return {
        f"train-{family}": "\n".join(
            [
                f"name: train-{family}",
                f"aliases: [{', '.join('train-' + member for member in members)}]",
                f"description: training steps on {family}, fitted on {len(samples)} published figures",
                f"source: {'; '.join(documents)}",
                f"hardware: [{', '.join(members)}]",
                _mapping("matmul", {dtype: values[f"{family}.{dtype}"] for dtype in terms.MATMULS[family]}),
                *(f"{name}: {training.factor_of(values, name, family):.4g}" for name in training.SHARED),
                _mapping("attention_of", {name: values[f"{name}.attention"] for name in terms.ATTENTION_OF}),
                _mapping("trainers", {name: values[name] for name in terms.TRAINERS}),
                _mapping("most_devices", training.most_devices(samples, family)),
                *_certainty(fitted, family),
                *_errors(judged),
                *_judged(judged),
            ]
        )
        + "\n"
        for family, members in training.FAMILIES.items()
    }


def _factor(term: Term, value: float) -> str:
    return f"{term.name}: {1e6 * value:.4f} us" if term.unit == "seconds" else f"{term.name}: {value:.4g}"


def _certainty(fitted: FittedTerms, family: str = "") -> list[str]:
    """Standard errors, and factors that the rows do not determine, as YAML; those of other families are left out."""

    def own(name: str) -> bool:
        return name.partition(".")[0] in (family, *terms.TRAINERS) or "." not in name

    errors = {name: error for name, error in fitted.standard_errors.items() if own(name)}
    undetermined = ", ".join(name for name in fitted.undetermined if own(name))
    return [_mapping("standard_errors", errors, digits=2), f"undetermined: [{undetermined}]"]


def _mapping(name: str, values: Mapping[str, float], digits: int = 4) -> str:
    rows = (f"{key}: {value if isinstance(value, int) else f'{value:.{digits}g}'}" for key, value in values.items())
    return f"{name}: {{{', '.join(rows)}}}"


def _notes(notes: Sequence[str]) -> list[str]:
    return ["notes:", *(f'  - "{note}"' for note in notes)] if notes else []


def _errors(judged: Sequence[JudgedRow]) -> list[str]:
    """Leave-one-source-out errors as YAML."""
    metrics = dict.fromkeys(row.metric for row in judged)
    errors = [errors_of(name, [(row.error, row.series) for row in judged if row.metric == name]) for name in metrics]
    return [
        "errors:",
        *(
            f"  - {{metric: {e.metric}, median: {e.median:.4f}, p90: {e.p90:.4f}, "
            f"num_rows: {e.num_rows}, num_sources: {e.num_sources}}}"
            for e in errors
        ),
    ]


def _judged(rows: Sequence[JudgedRow]) -> list[str]:
    """Every row that was left out, as YAML."""
    return [
        "judged: # metric, error, series, routed, bits, tokens, gpus, load",
        *(
            f"  - [{row.metric}, {row.error:.4f}, {row.series}, {str(row.routed).lower()}, {row.bits}, "
            f"{row.tokens:.0f}, {row.gpus:.0f}, {row.load:.4g}]"
            for row in rows
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
