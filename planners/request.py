"""Options of a plan: one model for the command line, Python, suggestions and the JSON echo."""

from collections.abc import Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from l4spec.graph.layer_graph import LayerGraph
from l4spec.options import Mode, Option, Options, read_bandwidth, read_count, read_memory, read_number, read_tokens
from l4spec.quantization.published import AS_PUBLISHED
from l4spec.sharding.layout import Layout
from l4spec.tiling import seen_tiles
from l4spec.units import parse_rate
from planners.draft_options import DraftAcceptance
from planners.plan_types import Objective
from planners.training_options import (
    ActivationCheckpointing,
    GradientBytes,
    LoraRank,
    LoraTargets,
    Optimizer,
    SequenceParallel,
    TrainerName,
    VirtualStages,
    ZeroStage,
)
from planners.video import Clip, Fps, Frames, FrameSize, Video, video_info

if TYPE_CHECKING:
    from planners.device.training_state import TrainSetting

DEFAULT_CONTEXT = 8192
DEFAULT_PREFILL_CHUNK = 8192
LARGEST = 1 << 20
"""Most sequences, tiles and devices along one axis; a larger number is a mistake."""
LONGEST = 1 << 40
"""Most tokens of a sequence or a chunk."""
LEAST_MEMORY = 3
"""The ZeRO stage that shards the most."""
MAX: Literal["max"] = "max"
"""Value of a context: as many tokens as fit."""
MOST_TRAIN_TOKENS = 10**18
MOST_IMAGES = 10_000
BEYOND = "set a larger text.max_seq_len to plan beyond the model's own limit"

_Degree = Annotated[int | None, Field(ge=1, le=LARGEST)]
_Tokens = Annotated[int | None, Field(ge=1, le=LONGEST)]
HOST_OPTIONS = ("host_memory", "host_bandwidth", "on_host")
"""Options of one GPU beside its host's memory."""


def read_rate(text: str) -> float:
    """Requests per second as `2`, `2/s`, `90/min` or `2000/h`. Raises ValueError."""
    return float(parse_rate(text)) if "/" in text else read_number(text)


def read_context(text: str) -> int | str:
    """A number of tokens, or `max`: as many as fit. Raises ValueError."""
    return MAX if text.strip().lower() == MAX else read_tokens(text)


class PlanRequest(Options):
    """Options of `plan`. An option left out has its default; degrees of parallelism left out are chosen.

    `context` counts the tokens of a sequence, prompt and output together; `prompt_tokens` and `output_tokens` count
    them apart. Without any, 8,192 or the model's shorter limit are planned, never silently the model's longest.
    `quantization` names a scheme; by default it is the format that the spec's `stored_as` says, or else bf16. `batch`
    counts sequences over the whole deployment. With `output_tokens`, time is that of a closed loop of `concurrency`
    clients (by default `batch`), or of requests that arrive at `rate`.
    """

    gpus: Annotated[
        str | None, Option("Hardware, as 8xH100, 2x8xH100 for hosts, or N x a YAML file.", metavar="GPUS")
    ] = None
    quantization: Annotated[
        str,
        Option(
            "Weights: `l4spec ls quantization`.",
            metavar="SCHEME",
            flags=("--quantization", "-q"),
            mode="serve",
            default="as published",
        ),
    ] = AS_PUBLISHED
    kv_dtype: Annotated[str, Option("KV cache: bf16, fp16, fp32, fp8 or int8.", metavar="DTYPE", mode="serve")] = "bf16"
    context: Annotated[
        Annotated[int, Field(ge=1, le=LONGEST)] | Literal["max"] | None,
        Option(
            "Tokens of a sequence, prompt and output together, as 8192, 1M (a million), 128Ki (128 x 1024), or max: "
            "as many as fit.",
            metavar="TOKENS",
            parse=read_context,
            default="8192, or the model's shorter limit",
            expects=f"1 to {LONGEST:,} tokens, or max",
            too_large=BEYOND,
        ),
    ] = None
    prompt_tokens: Annotated[
        _Tokens,
        Option("Tokens of each prompt; instead of --context.", metavar="TOKENS", parse=read_tokens, mode="serve"),
    ] = None
    output_tokens: Annotated[
        _Tokens,
        Option(
            "Output tokens per request; part of --context if that is set.",
            metavar="TOKENS",
            parse=read_tokens,
            mode="serve",
        ),
    ] = None
    max_context: Annotated[
        _Tokens,
        Option(
            "The engine's sequence limit; the cache must have room for one such sequence. Instead of --context.",
            metavar="TOKENS",
            parse=read_tokens,
            mode="serve",
        ),
    ] = None
    batch: Annotated[
        int, Option("Sequences at a time, over the whole deployment.", parse=read_count), Field(ge=1, le=LARGEST)
    ] = 1
    concurrency: Annotated[
        int | None,
        Option("Clients of the closed loop.", parse=read_count, mode="serve", default="--batch"),
        Field(ge=1, le=LARGEST),
    ] = None
    rate: Annotated[
        float | None,
        Option(
            "Requests per second (open loop), instead of a closed loop.",
            metavar="PER_SECOND",
            parse=read_rate,
            mode="serve",
            expects="requests per second, a number above 0 and at most 1,000,000",
        ),
        Field(gt=0, le=1e6),
    ] = None
    tp: Annotated[_Degree, Option("Fix the tensor-parallel degree.", parse=read_count)] = None
    ep: Annotated[_Degree, Option("Fix the expert-parallel degree.", parse=read_count)] = None
    pp: Annotated[_Degree, Option("Fix the number of pipeline stages.", parse=read_count)] = None
    dp: Annotated[_Degree, Option("Fix the data-parallel degree.", parse=read_count)] = None
    cp: Annotated[
        _Degree,
        Option("Divide the tokens of a long prefill or training sequence among N GPUs.", parse=read_count, default="1"),
    ] = None
    engine: Annotated[
        str,
        Option(
            "Engine, for its cache policy and memory overheads: `l4spec ls engines`. As vllm@0.11 for one version.",
            metavar="ENGINE",
            mode="serve",
        ),
    ] = "ideal"
    objective: Annotated[
        Objective,
        Option(
            "How to choose open degrees: fastest, cheapest, max-context, min-gpus, max-free-memory or simplest.",
            metavar="OBJECTIVE",
            renamed={"balanced": "it is called max-free-memory now; fastest is the default, simplest the old choice"},
        ),
    ] = "fastest"
    mode: Annotated[Mode, Option("Serving (serve), or one training step (train).", metavar="MODE")] = "serve"
    num_tiles: Annotated[
        int,
        Option("Image tiles in one step of the vision tower.", flags=("--tiles",), parse=read_count, mode="serve"),
        Field(ge=0, le=LARGEST),
    ] = 0
    images: Annotated[
        int,
        Option("Images in one step, each cut into as many tiles as the model allows.", parse=read_count, mode="serve"),
        Field(ge=0, le=MOST_IMAGES),
    ] = 0
    video: Video = None
    fps: Fps = None
    frames: Frames = None
    frame_size: FrameSize = None
    memory_fraction: Annotated[
        float | None,
        Option(
            "Share of device memory to use.",
            metavar="SHARE",
            parse=read_number,
            default="the engine's own",
            expects="a number above 0 and at most 1",
        ),
        Field(gt=0, le=1),
    ] = None
    prefill_chunk: Annotated[
        int,
        Option(
            "Most tokens that one step prefills.",
            metavar="TOKENS",
            flags=("--prefill-chunk", "--max-num-batched-tokens"),
            parse=read_tokens,
            mode="serve",
        ),
        Field(ge=1, le=LONGEST),
    ] = DEFAULT_PREFILL_CHUNK
    max_num_seqs: Annotated[
        int | None,
        Option(
            "Most sequences in one step of the engine; its memory profiling samples as many rows.",
            parse=read_count,
            mode="serve",
            default="the engine's own",
        ),
        Field(ge=1, le=LARGEST),
    ] = None
    optimizer: Optimizer = "adamw"
    zero_stage: ZeroStage = None
    checkpointing: ActivationCheckpointing = None
    sequence_parallel: SequenceParallel = "off"
    gradient_bytes: GradientBytes = 4
    trainer: TrainerName = None
    virtual_stages: VirtualStages = 1
    lora_rank: LoraRank = None
    lora_targets: LoraTargets = "linear"
    micro_batch: Annotated[
        int | None,
        Option(
            "For training: sequences of one forward pass on a device.",
            parse=read_count,
            mode="train",
            default="the fastest of 1 to 8; 1 without --gpus",
        ),
        Field(ge=1, le=LARGEST),
    ] = None
    precision: Annotated[
        Literal["bf16", "fp8", "mxfp8", "nvfp4"],
        Option("For training: matmuls in bf16, fp8, mxfp8 or nvfp4.", metavar="FORMAT", mode="train"),
    ] = "bf16"
    fp8_matmuls: Annotated[
        str,
        Option(
            "With --precision fp8 or mxfp8: the scheme whose rules select the matmuls in that format.",
            metavar="SCHEME",
            mode="train",
        ),
    ] = "fp8"
    train_tokens: Annotated[
        int | None,
        Option(
            "For training: tokens of the whole run, as 15T.",
            metavar="TOKENS",
            flags=("--tokens",),
            parse=read_tokens,
            mode="train",
        ),
        Field(ge=1, le=MOST_TRAIN_TOKENS),
    ] = None
    usd_per_gpu_hour: Annotated[
        float | None,
        Option(
            "Price of a GPU, to compute the cost.",
            metavar="USD",
            parse=read_number,
            expects="a price above 0",
        ),
        Field(gt=0, le=1e6),
    ] = None
    routing: Annotated[
        str | None,
        Option(
            "Expert load: power_law:1.2, log_normal:1.0, maverick, or a JSON file written by `l4spec measure`.",
            metavar="LOAD",
            mode="serve",
            default="uniformly",
        ),
    ] = None

    host_memory: Annotated[
        str | None,
        Option(
            "Host memory, as 128GB, for weights that do not fit on a single GPU.",
            metavar="BYTES",
            parse=read_memory,
            mode="serve",
            default="none",
        ),
    ] = None
    host_bandwidth: Annotated[
        str | None,
        Option(
            "With --host-memory: its read bandwidth, as 460GB/s.",
            metavar="RATE",
            parse=read_bandwidth,
            mode="serve",
            default="89.6GB/s, two channels of DDR5-5600",
        ),
    ] = None
    on_host: Annotated[
        Literal["experts", "layers"] | None,
        Option(
            "With --host-memory: which weights it holds, experts (routed ones) or layers (whole ones).",
            metavar="PART",
            mode="serve",
            default="experts where there are any",
        ),
    ] = None
    draft_acceptance: DraftAcceptance = None
    factors: Annotated[
        str | None,
        Option(
            "Estimate times with the factors of a file written by `l4spec simulate --fit`.",
            metavar="FILE",
            mode="serve",
            default="the engine's published ones",
        ),
    ] = None

    @property
    def sequences(self) -> int:
        """Concurrent sequences over the whole deployment: the clients of a closed loop, or the batch."""
        return self.batch if self.concurrency is None else self.concurrency

    @property
    def training(self) -> "TrainSetting | None":
        """Training settings of the request; None for serving.

        Settings left out take the least memory on GPUs: `planners.search.training_choice` chooses what is faster.
        """
        if self.mode == "serve":
            return None
        from l4spec.graph.adapters import lora_of
        from planners.device.frozen_base import packed_base
        from planners.device.training_state import TrainSetting

        stage = 1 if self.gpus is None else LEAST_MEMORY
        return TrainSetting(
            optimizer=self.optimizer,
            zero_stage=stage if self.zero_stage is None else self.zero_stage,
            checkpointing=self.checkpointing or "full",
            gradient_bytes=self.gradient_bytes,
            micro_batch=self.micro_batch or 1,
            precision=self.precision,
            fp8_matmuls=self.fp8_matmuls,
            sequence_parallel=self.sequence_parallel == "on",
            trainer=self.trainer,
            virtual_stages=self.virtual_stages,
            lora=lora_of(self.lora_rank, self.lora_targets),
            base=None if self.lora_rank is None else packed_base(self.quantization),
        )

    def allowed(self, layouts: Iterable[Layout]) -> list[Layout]:
        """The layouts that have the requested degrees; `cp` left out means 1, since it is never chosen."""
        degrees = attrgetter("cp", *(axis for axis in ("tp", "ep", "pp", "dp") if getattr(self, axis) is not None))
        requested = degrees(self.fixed_layout())
        return [layout for layout in layouts if degrees(layout) == requested]

    def fixed_layout(self) -> Layout:
        """The layout of the given degrees, 1 for the others."""
        return Layout(tp=self.tp or 1, ep=self.ep or 1, pp=self.pp or 1, dp=self.dp or 1, cp=self.cp or 1)

    def tokens(self, graph: LayerGraph) -> int:
        """Tokens of a sequence: as given, or 8,192 plus a clip's, or the limit of model or engine if it is shorter."""
        if isinstance(self.context, int):
            return self.context
        if self.prompt_tokens is not None:
            return self.prompt_tokens + (self.output_tokens or 0)
        clip = video_info(self.clip, graph)
        return min(DEFAULT_CONTEXT + (clip.tokens if clip else 0), self.max_context or LONGEST, max_seq_len(graph))

    def tiles(self, graph: LayerGraph) -> int:
        """Number of tiles: `num_tiles`, the model's largest number for each of `images`, and those of a clip."""
        vision, clip = graph.model.vision, video_info(self.clip, graph)
        if vision is None:
            return self.num_tiles
        an_image = seen_tiles(vision.max_tiles, global_tile=vision.global_tile)
        return self.num_tiles + self.images * an_image + (clip.tiles if clip else 0)

    @property
    def all_images(self) -> int:
        """Images in one step, including stills of a clip."""
        stills = self.clip.stills
        return self.images + (stills.count if stills else 0)

    @property
    def clip(self) -> Clip:
        """The options of a clip."""
        return Clip(self.video, self.fps, self.frames, self.frame_size)


def has_experts(graph: LayerGraph) -> bool:
    """True if any layer routes its tokens among experts."""
    return any(group.declaration.routed for group in graph.groups)


def max_seq_len(graph: LayerGraph) -> int:
    """Longest sequence that the model supports, in tokens."""
    return graph.model.text.stack.width.max_seq_len
