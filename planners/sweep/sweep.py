"""`sweep`: plans of every variant for serving, and with `tokens` for training too."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from l4spec.errors import Place, Problem, SpecError, UserError
from l4spec.huggingface.opening import compiled
from l4spec.progress import Progress
from l4spec.spec.model import ModelSpec
from l4spec.spec.tree import plain
from l4spec.spec.yaml_tree import compose
from planners.latency_types import Latency
from planners.list_price import at_list_price
from planners.plan import plan
from planners.plan_types import Plan
from planners.request import PlanRequest
from planners.sweep.sweep_request import OF_TRAINING, SweepRequest
from planners.sweep.sweep_types import SweepRow, SweepTable
from planners.sweep.variants import SweptVariant, read_axes, read_factors, read_links, variants_of

Texts = Iterable[str] | Mapping[str, Sequence[object]]


def _refuse_without_tokens(asked: SweepRequest) -> None:
    """Raise UserError for options of a training run without one."""
    given = [name for name in OF_TRAINING if getattr(asked, name) != type(asked).model_fields[name].default]
    if given:
        raise UserError([Problem("is for a training run", name, hint="give its --tokens, as 15T") for name in given])


def sweep(
    model: str | Path,
    values: Texts = (),
    request: SweepRequest | None = None,
    /,
    *,
    link: Iterable[str] | Mapping[str, str] = (),
    widen: str | Sequence[float | str] = "1",
    progress: Progress | None = None,
    **options: Any,
) -> SweepTable:
    """A row for each combination of `values`, as `{"text.parts.moe.num_experts": [8, 16]}` or `["path=8,16"]`.

    `link` gives fields the value of another one, `widen` lists factors of width, `options` are those of `SweepRequest`.
    With `jobs` above 1 variants are planned in parallel by joblib, on joblib's backend:
    `joblib.parallel_config("dask")` distributes a sweep over a cluster. `progress` is called with the numbers of rows,
    done and in all. A variant that is not a valid spec, or cannot be planned, is a row with its `problem`.

    Raises UserError if no variant can be planned, and for invalid options.
    """
    asked = SweepRequest(**options) if request is None else request.changed(**options)
    axes, links, factors = read_axes(values), read_links(link), read_factors(widen)
    variants = variants_of(model, axes, links, factors)
    served, served_offer = at_list_price(asked.served())
    training = asked.trained()
    if training is None:
        _refuse_without_tokens(asked)
    if training is not None and training.gpus is None:
        raise UserError([Problem("a training run needs GPUs", "train_tokens", hint="give --train-gpus or --gpus")])
    trained, trained_offer = (None, None) if training is None else at_list_price(training)
    rows = tuple(_rows(variants, served, trained, asked.jobs, progress))
    if all(row.problem for row in rows):
        raise UserError([Problem(text) for text in dict.fromkeys(str(row.problem) for row in rows)])
    return SweepTable(
        model=str(model),
        paths=tuple(axis.path for axis in axes),
        serving=served.echo(),
        training=None if trained is None else trained.echo(),
        rows=rows,
        prices=tuple(dict.fromkeys(f"{one.hardware}: {one}" for one in (served_offer, trained_offer) if one)),
    )


def _rows(
    variants: Sequence[SweptVariant],
    served: PlanRequest,
    trained: PlanRequest | None,
    jobs: int,
    progress: Progress | None,
) -> Iterable[SweepRow]:
    if jobs > 1 and len(variants) > 1:
        from joblib import Parallel, delayed

        yield from Parallel(n_jobs=jobs)(delayed(row_of)(variant, served, trained) for variant in variants)
        return
    for number, variant in enumerate(variants, 1):
        yield row_of(variant, served, trained)
        if progress is not None:
            progress(number, len(variants))


def row_of(variant: SweptVariant, served: PlanRequest, trained: PlanRequest | None) -> SweepRow:
    """The row of one variant, computed by a worker."""
    values = {path: _scalar(text) for path, text in variant.settings}
    named = SweepRow(values=values, widen=float(variant.widen))
    if variant.spec is None:
        return named.model_copy(update={"problem": _said(variant.problems)})
    try:
        return named.model_copy(update=_costs(variant.spec, served, trained))
    except UserError as error:
        return named.model_copy(update={"model": variant.spec.name, "problem": _said(error.problems)})


def _scalar(text: str) -> str | int | float | bool | None:
    """Value of a text in a document; the text itself for a list or a mapping, so that a column can show it."""
    try:
        value = plain(compose(text, lambda line, column: Place("value", line, column)))
    except SpecError:
        return text
    return text if isinstance(value, list | dict) else value


def _said(problems: Iterable[Problem]) -> str:
    return "; ".join(map(str, problems))


def _costs(spec: ModelSpec, served: PlanRequest, trained: PlanRequest | None) -> dict[str, Any]:
    graph = compiled(spec)
    serving = plan(graph, served)
    training = None if trained is None else plan(graph, trained)
    return {"model": spec.name, **_serving(serving), **({} if training is None else _training(training))}


def _times(made: Plan) -> Latency:
    """Times and costs of a plan; none if it does not fit."""
    return (None if made.fits is False else made.latency) or Latency()


def _serving(made: Plan) -> dict[str, Any]:
    times = _times(made)
    return {
        "context": made.deployment.context,
        "batch": made.deployment.batch,
        "params": made.params.total,
        "active_params": made.params.active,
        "flops_per_token": made.flops.forward_per_token,
        "weight_bytes": made.weights.bytes,
        "kv_bytes_per_token": made.kv_cache.bytes_per_token_unbounded,
        "fits": made.fits,
        "layout": str(made.layout),
        "bytes_per_gpu": made.memory_per_device.total_bytes,
        "max_context": made.max_context,
        "ttft_seconds": times.ttft_seconds,
        "time_per_output_token_seconds": times.time_per_output_token_seconds,
        "tokens_per_second_per_gpu": times.tokens_per_second_per_gpu,
        "usd_per_million_output_tokens": times.usd_per_million_output_tokens,
        "extrapolated": times.extrapolated if made.latency and made.fits else None,
    }


def _training(made: Plan) -> dict[str, Any]:
    times = _times(made)
    return {
        "train_fits": made.fits,
        "train_layout": str(made.layout),
        "train_batch": made.deployment.batch,
        "train_mfu": times.mfu,
        "train_gpu_hours": times.gpu_hours,
        "train_usd": times.usd,
    }


__all__ = ["SweepTable", "sweep"]
