"""What `plan` and `compare` ask of the planner, read from their options."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import typer

from l4spec.errors import Problem, UserError

if TYPE_CHECKING:
    from l4spec.graph.layer_graph import LayerGraph
    from planners.device.training_state import TrainSetting
    from planners.plan_types import Plan

DEFAULT_QUANTIZATION = "bf16"
MOST_IMAGES = 10_000
_OF_TRAINING = {"optimizer", "zero_stage", "checkpointing", "micro_batch", "precision", "tokens"}


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """The planner's arguments, named as the options are."""

    gpus: str | None
    quantization: str | None
    kv_dtype: str
    context: int | None
    batch: int
    tp: int | None
    ep: int | None
    pp: int | None
    dp: int | None
    cp: int | None
    engine: str
    objective: Any
    mode: Any
    tiles: int
    images: int
    memory_fraction: float | None
    prefill_chunk: int
    optimizer: str
    zero_stage: int
    checkpointing: str
    micro_batch: int
    precision: str = "bf16"
    output_tokens: int | None = None
    tokens: int | None = None
    usd_per_gpu_hour: float | None = None
    routing: str | None = None

    @classmethod
    def of(cls, ctx: typer.Context) -> "PlanRequest":
        """The request among a command's parameters. Raises UserError for training options while serving."""
        request = cls(**{field.name: ctx.params[field.name] for field in fields(cls) if field.name in ctx.params})
        stray = [name for name in given_options(ctx) if name in _OF_TRAINING]
        if stray and request.mode != "train":
            raise UserError([Problem(f"{option_name(name)} needs --mode train") for name in stray])
        return request

    def plan(self, graph: "LayerGraph") -> "Plan":
        """Plan a model as asked. Raises UserError, whose problems name options as they are typed."""
        with options_named():
            return self._plan(graph)

    def _plan(self, graph: "LayerGraph") -> "Plan":
        from planners.plan import plan

        return plan(
            graph,
            gpus=self.gpus,
            quantization=DEFAULT_QUANTIZATION if self.quantization is None else self.quantization,
            kv_dtype=self.kv_dtype,
            context=self.context,
            batch=self.batch,
            tp=self.tp,
            ep=self.ep,
            pp=self.pp,
            dp=self.dp,
            cp=self.cp,
            engine=self.engine,
            objective=self.objective.value,
            mode=self.mode.value,
            num_tiles=self._num_tiles(graph),
            prefill_chunk=self.prefill_chunk,
            memory_fraction=self.memory_fraction,
            train=self._train(),
            output_tokens=self.output_tokens,
            train_tokens=self.tokens,
            usd_per_gpu_hour=self.usd_per_gpu_hour,
            routing=self.routing,
        )

    def _train(self) -> "TrainSetting":
        from planners.device.training_state import TrainSetting

        return TrainSetting(
            optimizer=self.optimizer,
            zero_stage=self.zero_stage,
            checkpointing=self.checkpointing,
            micro_batch=self.micro_batch,
            precision=self.precision,
        )

    def _num_tiles(self, graph: "LayerGraph") -> int:
        """`--tiles`, and for each of `--images` the most tiles that the model cuts an image into."""
        if not self.images:
            return self.tiles
        vision = graph.model.vision
        if vision is None:
            raise UserError([Problem("the model has no vision, so it takes no images", path="--images")])
        if not 0 <= self.images <= MOST_IMAGES:
            raise UserError([Problem(f"expected 0 to {MOST_IMAGES:,}, found {self.images:,}", path="--images")])
        whole_image = 1 if vision.global_tile and vision.max_tiles > 1 else 0
        return self.tiles + self.images * (vision.max_tiles + whole_image)


def given_options(ctx: typer.Context) -> tuple[str, ...]:
    """Names of the parameters that the user wrote, defaults left out."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    return tuple(name for name, source in sources.items() if source is not None and source.name != "DEFAULT")


def option_name(parameter: str) -> str:
    """A parameter as the command line writes it: `--kv-dtype`."""
    return "--" + {"overrides": "set"}.get(parameter, parameter).replace("_", "-")


@contextmanager
def options_named() -> Iterator[None]:
    """Inside, problems of the planner's arguments are named as options are typed."""
    try:
        yield
    except UserError as error:
        raise UserError(_in_options(problem) for problem in error.problems) from None


def _in_options(problem: Problem) -> Problem:
    name = {"num_tiles": "tiles", "train_tokens": "tokens"}.get(problem.path, problem.path)
    known = {field.name for field in fields(PlanRequest)}
    return replace(problem, path=option_name(name)) if name in known else problem


def compiled(path_or_name: str, overrides: Sequence[str] | None) -> "LayerGraph":
    """The layer graph of a spec by path or shipped name, or of a config.json; says on stderr what an import left out.

    Raises UserError.
    """
    import l4spec
    from l4spec.cli.output import complain
    from l4spec.huggingface.opening import open_document
    from l4spec.spec.document_kinds import parse_as
    from l4spec.spec.model import ModelSpec

    document, notes = open_document(path_or_name, overrides or ())
    for note in notes:
        complain(f"note: {note}")
    return l4spec.compile(parse_as(document, ModelSpec))
