"""Arguments and options that several commands share, each with its help."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer


class Format(StrEnum):
    """How a report is written."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


class Objective(StrEnum):
    """What a layout is chosen for."""

    BALANCED = "balanced"
    MAX_CONTEXT = "max-context"
    MIN_GPUS = "min-gpus"


class Mode(StrEnum):
    """What the model is planned for."""

    SERVE = "serve"
    TRAIN = "train"


class Emit(StrEnum):
    """What a plan's launch is written for."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TENSORRT_LLM = "tensorrt-llm"
    TORCHTITAN = "torchtitan"
    K8S = "k8s"


def tokens_from(least: int | None = None) -> Callable[[str | int], int]:
    """A reader of token counts as `1M` or `128Ki` for an option; fewer than `least` are refused."""

    def read(text: str | int) -> int:
        from l4spec.units import parse_count

        count = text if isinstance(text, int) else parse_count(text)
        if least is not None and count < least:
            raise ValueError(f"expected at least {least}, found {count:,}")
        return count

    return read


tokens = tokens_from()
"""Where the planner or the runtime says itself what it takes."""
_SPEC = "A spec: the path of a YAML file, or a shipped name (`l4spec ls`)."
SpecArgument: TypeAlias = Annotated[str, typer.Argument(metavar="SPEC", help=_SPEC, show_default=False)]
SpecsArgument: TypeAlias = Annotated[
    list[str], typer.Argument(metavar="SPEC", help="Paths of YAML files or shipped names.", show_default=False)
]
SetOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a field, as text.parts.moe.num_experts=32; repeatable.",
        show_default=False,
    ),
]
OutOption: TypeAlias = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write to a file instead of the terminal.")
]
ForceOption: TypeAlias = Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")]
FormatOption: TypeAlias = Annotated[Format, typer.Option("--format", help="How to write the report.")]

GpusOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--gpus", metavar="GPUS", help="Hardware, as 8xH100, 2x8xH100 for hosts, or N x a YAML file."),
]
QuantizationOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--quantization", "-q", metavar="SCHEME", help="Weights: `l4spec ls quantization`.  [default: bf16]"),
]
KvDtypeOption: TypeAlias = Annotated[
    str, typer.Option("--kv-dtype", metavar="DTYPE", help="KV cache: bf16, fp16, fp32, fp8 or int8.")
]
ContextOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="TOKENS",
        parser=tokens,
        help="Tokens of a sequence, as 8192, 1M (a million) or 128Ki (128 x 1024).  "
        "[default: 8192, or the model's shorter limit]",
    ),
]
BatchOption: TypeAlias = Annotated[
    int, typer.Option("--batch", metavar="N", help="Sequences at a time, over the whole deployment.")
]
TpOption: TypeAlias = Annotated[int | None, typer.Option("--tp", metavar="N", help="Fix the tensor-parallel degree.")]
EpOption: TypeAlias = Annotated[int | None, typer.Option("--ep", metavar="N", help="Fix the expert-parallel degree.")]
PpOption: TypeAlias = Annotated[
    int | None, typer.Option("--pp", metavar="N", help="Fix the number of pipeline stages.")
]
DpOption: TypeAlias = Annotated[int | None, typer.Option("--dp", metavar="N", help="Fix the data-parallel degree.")]
CpOption: TypeAlias = Annotated[
    int | None,
    typer.Option("--cp", metavar="N", help="Divide the tokens of a long prefill among N devices.  [default: 1]"),
]
EngineOption: TypeAlias = Annotated[
    str, typer.Option("--engine", metavar="ENGINE", help="Cache policy and overheads: `l4spec ls engines`.")
]
ObjectiveOption: TypeAlias = Annotated[
    Objective, typer.Option("--objective", help="What the layout is chosen for, where degrees are not fixed.")
]
ModeOption: TypeAlias = Annotated[Mode, typer.Option("--mode", help="Serving, or one training step.")]
TilesOption: TypeAlias = Annotated[
    int, typer.Option("--tiles", metavar="N", help="Image tiles that the vision tower sees in one step.")
]
ImagesOption: TypeAlias = Annotated[
    int,
    typer.Option("--images", metavar="N", help="Images in one step, each cut into as many tiles as the model allows."),
]
FractionOption: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--memory-fraction", metavar="SHARE", help="Share of device memory to use.  [default: the engine's own]"
    ),
]
ChunkOption: TypeAlias = Annotated[
    int, typer.Option("--prefill-chunk", metavar="TOKENS", parser=tokens, help="Most tokens that one step prefills.")
]
OptimizerOption: TypeAlias = Annotated[
    str, typer.Option("--optimizer", metavar="NAME", help="With --mode train: adamw, adamw-bf16 or sgd.")
]
ZeroOption: TypeAlias = Annotated[
    int, typer.Option("--zero-stage", metavar="0-3", help="With --mode train: what data-parallel ranks shard.")
]
CheckpointingOption: TypeAlias = Annotated[
    str,
    typer.Option("--checkpointing", metavar="KIND", help="With --mode train: none or full activation checkpointing."),
]
PrecisionOption: TypeAlias = Annotated[
    str, typer.Option("--precision", metavar="FORMAT", help="With --mode train: matmuls in bf16 or fp8.")
]
EmitOption: TypeAlias = Annotated[
    Emit | None,
    typer.Option("--emit", help="Print the launch command or config that the plan stands for.", show_default=False),
]
ModelOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="ID", help="With --emit: the checkpoint.  [default: the one in the spec's sources]"
    ),
]
MicroBatchOption: TypeAlias = Annotated[
    int,
    typer.Option("--micro-batch", metavar="N", help="With --mode train: sequences of one forward pass on a device."),
]
OutputTokensOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--output-tokens",
        metavar="TOKENS",
        parser=tokens,
        help="Of the context, tokens that each of --batch clients gets in a closed loop.",
    ),
]
TrainTokensOption: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--tokens", metavar="TOKENS", parser=tokens, help="With --mode train: tokens of the whole run, as 15T."
    ),
]
PriceOption: TypeAlias = Annotated[
    float | None, typer.Option("--usd-per-gpu-hour", metavar="USD", help="Price of a GPU, to tell what it costs.")
]
RoutingOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--routing",
        metavar="FILE",
        help="How tokens choose experts, from `measure --format json`.  [default: uniformly]",
    ),
]
VerboseOption: TypeAlias = Annotated[bool, typer.Option("--verbose", "-v", help="Add every table behind the answer.")]
ExplainOption: TypeAlias = Annotated[
    bool, typer.Option("--explain", help="Add each number's arithmetic and the source of every constant.")
]
MarkdownOption: TypeAlias = Annotated[bool, typer.Option("--markdown", help="Write Markdown.")]
