"""Training state of one device: weights, gradients and optimizer states, and how they shard.

Mixed precision with AdamW: bf16 weights, gradients of `gradient_bytes`, an fp32 master copy and two fp32 moments (12 B
per parameter). ZeRO shards over data-parallel ranks (arXiv:1910.02054): stage 1 optimizer states, stage 2 gradients
too, stage 3 (FSDP) weights too. Experts are already divided by ep; other weights are repeated over ep, and sharded over
dp * ep. Ranks along cp have the same weights, too, and share them: dp * ep * cp, and dp * cp of experts. Megatron's
numbers are the same (its ranks of data parallelism are our dp * ep); an ep that spans ranks of cp has no layout here.

Activations are those of a device's tokens: of a sequence that cp ranks divide a part. Beside them the ring has two
blocks of keys and values and two of their gradients (`RING_BLOCKS`), while no logits are there.
"""

from dataclasses import dataclass
from itertools import pairwise

from l4spec.graph.adapters import Lora
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.graph.trainable import trained_names
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.quantization.matmuls import matmul_table
from l4spec.quantization.scheme import Quantization, scheme_named
from l4spec.sharding.layout import Layout
from l4spec.sharding.rules import is_after_blocks
from l4spec.units import ceil_div
from planners.counts.weights import Scheme
from planners.device.activations import activation_rates, passed_per_token
from planners.device.frozen_base import Measured, measure, unpacked_of
from planners.device.pipeline_schedule import most_kept
from planners.device.stages import PipelineStage
from planners.device.trained_modules import ModuleParams, module_kept, module_params
from planners.device.trainer_memory import TrainerMemory, trainer_memory

OPTIMIZER_BYTES = {"adamw": 12, "adamw-bf16": 4, "sgd": 4}
"""Bytes per parameter: fp32 master and two fp32 moments; two bf16 moments without master; an fp32 master alone."""
_WITH_MASTER = frozenset({"adamw", "sgd"})
WEIGHT_BYTES = 2
RING_BLOCKS = 4
"""Keys and values at work and those that arrive, and the gradients of both (Transformer Engine, context_parallel)."""
PRECISIONS = ("bf16", "fp8", "mxfp8", "nvfp4")
"""Formats of matmuls in training; saved tensors have their own."""
RUN = ("bf16", "fp8")
"""Formats that our own runtime trains in."""
PEAKS = {"bf16": "bf16", "fp8": "fp8", "mxfp8": "fp8", "nvfp4": "fp4"}
"""The number format at whose peak they run; mxfp8 scales 32 elements together (OCP MX), nvfp4 16."""


@dataclass(frozen=True, slots=True)
class TrainSetting:
    """Memory settings of training. `gradient_bytes` is 2 or 4 per parameter.

    `precision` is the format of matmuls. With `fp8` and `mxfp8`, weights are stored in bf16 and those that the scheme
    `fp8_matmuls` packs are cast layer by layer, with `nvfp4` those of the scheme nvfp4; the casts are not counted.
    """

    optimizer: str = "adamw"
    zero_stage: int = 1
    checkpointing: Checkpointing = "full"
    gradient_bytes: int = 4
    micro_batch: int = 1
    precision: str = "bf16"
    trainable: tuple[str, ...] = ()
    """Prefixes of the names of trained tensors (`l4spec.graph.trainable`); empty: all."""
    fp8_matmuls: str = "fp8"
    sequence_parallel: bool = False
    """Sequence parallelism: tensor-parallel ranks have a share of the tokens each between the layers that they cut."""
    with_modules: bool = False
    """Training of the declared modules of multi-token prediction, too (`planners.device.trained_modules`)."""
    with_reference: bool = False
    """A frozen copy of the model beside it, whose weights are shared as the model's are."""
    trainer: str | None = None
    """The trainer whose memory is planned (`planners.device.trainer_memory`); None: our own runtime."""
    virtual_stages: int = 1
    """Chunks of layers of each pipeline stage: more than one interleave the pipeline."""
    lora: Lora | None = None
    """Adapters, which alone are trained: the model's own tensors are frozen, and stored in bf16 or as in `base`."""
    base: Scheme | None = None
    """Scheme of frozen weights, which are unpacked to bf16 layer by layer (QLoRA, arXiv:2305.14314)."""

    @property
    def matmuls(self) -> Quantization:
        """Rule table of the matmuls' formats, which a run uses too."""
        return scheme_named(self.precision) if self.fp8_scheme is None else matmul_table(self.fp8_scheme)

    @property
    def fp8_scheme(self) -> str | None:
        """The scheme whose rules select the matmuls; None in other formats than fp8 and mxfp8."""
        return self.fp8_matmuls if self.peak_dtype == "fp8" else None

    @property
    def peak_dtype(self) -> str:
        """The number format at whose peak the matmuls run."""
        return PEAKS[self.precision]


@dataclass(frozen=True, slots=True)
class TrainingState:
    """Bytes on one device; `gathered` are the whole tensors that ZeRO gathers for the running blocks.

    `reference` is the part of `weights` that a frozen copy of the model has.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int
    reference: int


@dataclass(frozen=True, slots=True)
class StageState:
    """State of one device of a stage, independent of the batch, and its activation bytes per token.

    `kept` is per micro-batch in flight, in each chunk of the stage's layers; `at_work` is of one micro-batch. The stage
    is `index` of `pp` (`planners.device.pipeline_schedule`).
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    chunks: tuple[int, ...]
    at_work: int
    pp: int
    index: int
    micro_batch: int
    reference: int = 0
    """The part of `weights` that a frozen copy of the model has."""

    @property
    def kept(self) -> int:
        """Activation bytes per token of a micro-batch in flight in all of the stage's layers."""
        return sum(self.chunks)

    def with_batch(self, context: int, sequences: int) -> TrainingState:
        """The state with the activations of one optimizer step over `sequences` sequences.

        The device has `context` tokens of each.
        """
        micro = min(self.micro_batch, max(sequences, 1))
        in_flight = most_kept(self.chunks, self.pp, self.index, ceil_div(max(sequences, 1), micro))
        activations = micro * context * (in_flight + self.at_work)
        return TrainingState(self.weights, self.gradients, self.optimizer, activations, self.gathered, self.reference)


def stage_state(
    graph: LayerGraph, train: TrainSetting, layout: Layout, stage: PipelineStage, law: TrainerMemory | None = None
) -> StageState:
    """State of one device of a stage, by `law`; the one of the setting's trainer if none is given."""
    modules = module_kept(graph, layout.tp, layout.ep, train.checkpointing) if _has_modules(train, stage) else ()
    trained = trained_on_device(graph, train, layout, stage)

    def kept(params: tuple[int, int], level: int) -> int:
        return _over_ranks(*params, layout) if train.zero_stage >= level else sum(params)

    law = law or trainer_memory(train.trainer)
    split = train.sequence_parallel and layout.tp > 1
    of_layers = law.layers(graph, layout.tp, layout.ep, train.checkpointing, split=split, lora=train.lora)
    layers = (*(of_layers[layer] for layer in stage.layers), *modules)
    chunks = [sum(of_layers[layer].kept for layer in chunk) for chunk in stage.chunks]
    chunks[-1] += sum(module.kept for module in modules)
    row = activation_rates(graph, layout.tp, layout.ep).per_logit_row
    loss = law.loss_bytes(row, 1 + len(modules)) if stage.last else 0
    workspace = law.workspace_bytes(graph, layout.tp, layout.ep, stage.layers)
    each = law.weight_bytes.get(train.optimizer, WEIGHT_BYTES)
    if train.lora is None:
        weights = each * kept(_with_modules(graph, train, layout, stage, ()), 3)
    else:
        weights = kept(frozen_bytes(graph, train, layout, stage), 3) + each * kept(trained, 3)
    unpacked = unpacked_of(graph, train.base, layout, stage.layers).largest if train.base else 0
    head = _head_gradient(graph, layout, train) if stage.last and law.head_gradient else 0
    return StageState(
        weights=2 * weights if train.with_reference else weights,
        gradients=train.gradient_bytes * kept(trained, 2),
        optimizer=law.optimizer_bytes.get(train.optimizer, OPTIMIZER_BYTES[train.optimizer]) * kept(trained, 1),
        gathered=_gathered(graph, train, layout, stage) + head + unpacked,
        chunks=tuple(chunks),
        at_work=max(layer.again for layer in layers) + max(loss, _ring(graph, layout, stage)) + workspace,
        pp=layout.pp,
        index=stage.index,
        micro_batch=train.micro_batch,
        reference=weights if train.with_reference else 0,
    )


def _ring(graph: LayerGraph, layout: Layout, stage: PipelineStage) -> int:
    """Bytes of one token of the blocks that a ring of cp ranks has at work; 0 without one."""
    if layout.cp == 1:
        return 0
    passed = passed_per_token(graph, layout.tp)
    return RING_BLOCKS * max(passed[layer] for layer in stage.layers)


def updated_bytes(graph: LayerGraph, train: TrainSetting, layout: Layout, stage: PipelineStage) -> int:
    """Bytes that the optimizer reads and writes in a step on one device of a stage.

    It reads gradients, reads and writes its state, and writes weights; where no master copy is in that state it reads
    the weights, too. Left out: setting gradients to zero, and their norm.
    """
    trained = trained_on_device(graph, train, layout, stage)
    number = _over_ranks(*trained, layout) if train.zero_stage else sum(trained)
    law = trainer_memory(train.trainer)
    state = law.optimizer_bytes.get(train.optimizer, OPTIMIZER_BYTES[train.optimizer])
    weight = law.weight_bytes.get(train.optimizer, WEIGHT_BYTES)
    has_master = train.optimizer in _WITH_MASTER and train.optimizer not in law.weight_bytes
    return number * (train.gradient_bytes + 2 * state + weight * (1 if has_master else 2))


def _head_gradient(graph: LayerGraph, layout: Layout, train: TrainSetting) -> int:
    """Bytes of the head's gradient in bf16."""
    if train.lora is not None:
        return 0
    return WEIGHT_BYTES * sum(_device_params(graph, layout.tp, layout.ep, train.trainable).after_largest)


def _has_modules(train: TrainSetting, stage: PipelineStage) -> bool:
    return train.with_modules and stage.last


def _with_modules(
    graph: LayerGraph, train: TrainSetting, layout: Layout, stage: PipelineStage, trainable: tuple[str, ...]
) -> tuple[int, int]:
    """As `params_on_device`, with modules of multi-token prediction where they are trained."""
    dense, experts = params_on_device(graph, layout, stage, trainable)
    if _has_modules(train, stage):
        modules = module_params(graph, layout.tp, layout.ep, trainable)
        more, more_experts = modules.on_device(several_stages=layout.pp > 1)
        return dense + more, experts + more_experts
    return dense, experts


def _gathered(graph: LayerGraph, train: TrainSetting, layout: Layout, stage: PipelineStage) -> int:
    """Bytes of gathered tensors: weights of two blocks (ZeRO 3), and the gradient of one (ZeRO 2 and 3).

    A block's weights are gathered while the one before it computes, as FSDP2 of torch does; its gradient is in the
    weights' format until it is reduced. Outside blocks every layer, as embedding and head, is one by itself. A module
    of multi-token prediction is one more block, which runs between embedding and head of its own tokens.
    """
    gathered = 0
    if train.zero_stage >= 3:
        of_base = 1 if train.base else WEIGHT_BYTES
        sizes = [of_base * size for size in _sizes_of_blocks(graph, train, layout, stage, (), train.base)]
        if train.lora is not None:
            adapters = _sizes_of_blocks(graph, train, layout, stage, (), train.lora)
            sizes = [size + WEIGHT_BYTES * more for size, more in zip(sizes, adapters, strict=True)]
        gathered = max((one + following for one, following in pairwise(sizes)), default=sizes[0])
    if train.zero_stage >= 2:
        trained = _sizes_of_blocks(graph, train, layout, stage, train.trainable, train.lora)
        gathered += WEIGHT_BYTES * max(trained)
    return gathered


def _sizes_of_blocks(
    graph: LayerGraph,
    train: TrainSetting,
    layout: Layout,
    stage: PipelineStage,
    trainable: tuple[str, ...],
    of: Measured,
) -> list[int]:
    """Sizes that data-parallel ranks share, of each block of a stage and of the largest layer at its ends."""
    elements = _device_params(graph, layout.tp, layout.ep, trainable, of)
    blocks = [elements.layers[layer] for layer in stage.layers]
    blocks = [elements.before_largest] * stage.first + blocks + [elements.after_largest] * stage.last
    if _has_modules(train, stage):
        blocks += _module_blocks(module_params(graph, layout.tp, layout.ep, trainable), elements.after_largest)
    shares_dense, shares_experts = layout.dense_copies > 1, layout.expert_copies > 1
    return [dense * shares_dense + experts * shares_experts for dense, experts in blocks]


def _module_blocks(modules: ModuleParams, head: tuple[int, int]) -> list[tuple[int, int]]:
    """Blocks that run for each module after the head of the model: the embedding, the module, the head."""
    return [block for module in modules.modules for block in ((modules.embedding, 0), module, head)]


def _over_ranks(dense: int, experts: int, layout: Layout) -> int:
    return ceil_div(dense, layout.dense_copies) + ceil_div(experts, layout.expert_copies)


@dataclass(frozen=True, slots=True)
class _DeviceParams:
    """(dense, routed-expert) parameters of one device: of each block, before the first, after the last, and tied.

    Of what is before the first block and after the last also the largest layer.
    """

    layers: tuple[tuple[int, int], ...]
    before: tuple[int, int]
    after: tuple[int, int]
    tied: tuple[int, int]
    before_largest: tuple[int, int]
    after_largest: tuple[int, int]


@kept_with(maxsize=1024)
def params_on_device(
    graph: LayerGraph, layout: Layout, stage: PipelineStage, trainable: tuple[str, ...] = (), of: Measured = None
) -> tuple[int, int]:
    """(dense, routed-expert) parameters of a stage's device before ZeRO; a tied head on another stage is a copy.

    With `trainable`, those that its selectors name. `of` a scheme counts bytes, `of` LoRA the adapters' parameters.
    """
    elements = _device_params(graph, layout.tp, layout.ep, trainable, of)
    parts = [elements.layers[layer] for layer in stage.layers]
    if stage.first:
        parts.append(elements.before)
    if stage.last:
        parts += [elements.after, elements.tied] if layout.pp > 1 else [elements.after]
    return sum(dense for dense, _ in parts), sum(experts for _, experts in parts)


def ends_on_device(
    graph: LayerGraph, layout: Layout, stage: PipelineStage, trainable: tuple[str, ...] = (), of: Measured = None
) -> int:
    """Dense parameters of a stage outside blocks: before the first one, and after the last."""
    blocks = params_on_device(graph, layout, stage._replace(first=False, last=False), trainable, of)
    return params_on_device(graph, layout, stage, trainable, of)[0] - blocks[0]


def trained_on_device(graph: LayerGraph, train: TrainSetting, layout: Layout, stage: PipelineStage) -> tuple[int, int]:
    """(dense, routed-expert) parameters of a stage's device that are trained, modules included, before ZeRO."""
    if train.lora is not None:
        return params_on_device(graph, layout, stage, (), train.lora)
    return _with_modules(graph, train, layout, stage, train.trainable)


def gathered_parts(
    graph: LayerGraph, train: TrainSetting, layout: Layout, stage: PipelineStage
) -> tuple[int, int, int]:
    """Bytes of a device's weights in a computation: dense ones in blocks, those outside, experts; adapters included."""
    parts: list[tuple[Measured, int]] = [(train.base, 1 if train.base else WEIGHT_BYTES)]
    parts += [] if train.lora is None else [(train.lora, WEIGHT_BYTES)]
    sums = [0, 0, 0]
    for of, size in parts:
        dense, experts = params_on_device(graph, layout, stage, (), of)
        ends = ends_on_device(graph, layout, stage, (), of)
        sums = [one + size * more for one, more in zip(sums, (dense - ends, ends, experts), strict=True)]
    return sums[0], sums[1], sums[2]


def frozen_bytes(graph: LayerGraph, train: TrainSetting, layout: Layout, stage: PipelineStage) -> tuple[int, int]:
    """(dense, routed-expert) bytes of a stage's device that the frozen model under adapters has, before ZeRO."""
    dense, experts = params_on_device(graph, layout, stage, (), train.base)
    each = 1 if train.base else WEIGHT_BYTES
    return each * dense, each * experts


@kept_with(maxsize=512)
def _device_params(
    graph: LayerGraph, tp: int, ep: int, trainable: tuple[str, ...] = (), of: Measured = None
) -> _DeviceParams:
    """Trained parameters on a device under these degrees, or what `measure` counts; equal layers are counted once."""
    layout, trained = Layout(tp=tp, ep=ep), trained_names(graph, trainable) if trainable else None
    layers, ends = [[0, 0] for _ in range(graph.num_layers)], {"before": [0, 0], "after": [0, 0], "tied": [0, 0]}
    largest = {"before": (0, 0), "after": (0, 0), "tied": (0, 0)}
    for group in graph.groups:
        for parameter in group.declaration.parameters:
            if parameter.buffer:
                continue
            size = measure(graph, group.first, parameter, layout, of)
            expert = int(parameter.is_per_expert and group.first.scope == "text")
            for node in group.nodes:
                if trained is not None and (parameter.tied_to or f"{node.id}.{parameter.name}") not in trained:
                    continue
                if isinstance(of, Scheme) and of.depends_on_layer:
                    size = measure(graph, node, parameter, layout, of)
                if _in_block(node) and node.layer is not None:
                    layers[node.layer][expert] += size
                else:
                    end = "tied" if parameter.tied_to else "after" if is_after_blocks(node) else "before"
                    ends[end][expert] += size
                    largest[end] = max(largest[end], (size, 0))
    counts = {name: (dense, experts) for name, (dense, experts) in ends.items()}
    widest = {"before_largest": largest["before"], "after_largest": max(largest["after"], largest["tied"])}
    return _DeviceParams(tuple((dense, experts) for dense, experts in layers), **counts, **widest)


def _in_block(node: LayerNode) -> bool:
    return node.scope == "text" and node.layer is not None
