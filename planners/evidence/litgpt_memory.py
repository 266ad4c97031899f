"""Memory law of lit-gpt's `finetune/lora.py` (October 2023, commit 8641822), whose tables of peaks are replayed.

bf16 weights, gradients and moments of AdamW, no checkpointing, allocated bytes (`torch.cuda.max_memory_allocated`).
By its code, and by hooks on its saved tensors, a block keeps what `planners.device.activations` has under adapters,
and: the mask of the one dropout of query's and value's adapters; the joint projection of query, key and value, of
which value is a view; the adapters' results before zeros are put beside them for the key (`index_copy` saves them). The
head's logits are fp32, and their logarithms are saved: 8 bytes an entry. bitsandbytes 0.41 saves the inputs of packed
layers (later versions do not), and unpacks a weight in fp16 beside its bf16 copy; of the head that is the most.

Each norm is counted with one more result of its own. Hooks on a CPU do not show it: it is what Llama's rows miss and
those of lit-gpt's models without RMSNorm do not. MEM-0173, the row that may choose a form, is 2.8 % off with it and
7.7 % without.
"""

from dataclasses import dataclass

from l4spec.graph.adapters import Lora
from l4spec.graph.kept import kept_with
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.quantization.scheme import Quantization, scheme_named
from l4spec.sharding.layout import Layout
from planners.counts.weights import Scheme, scheme_of
from planners.device.activations import KeptOfLayer, kept_per_token, saved_per_token
from planners.device.stages import PipelineStage, stages
from planners.device.trainer_memory import TrainerMemory
from planners.device.training_state import TrainSetting, stage_state
from planners.evidence.rows import Row

LORA = Lora(rank=8, targets=("q_proj", "v_proj"), dropout=True)
_SCHEMES = {"nf4": "bnb-nf4-fp32", "nf4-dq": "bnb-nf4"}
_LOGITS, _LOGIT_GRADIENTS = 8, 6
"""Bytes an entry of logits when the loss is done, and when the head's backward pass begins."""
_UNPACKED = 4
"""Bytes of an unpacked weight: fp16, and its copy in bf16."""


@dataclass(frozen=True, slots=True)
class LitGPTMemory(TrainerMemory):
    """Memory of lit-gpt beside the plan's own law; packed layers keep their inputs."""

    packed: bool = False

    def layers(
        self, graph: LayerGraph, tp: int, ep: int, checkpointing: Checkpointing, *, split: bool, lora: Lora | None
    ) -> tuple[KeptOfLayer, ...]:
        """Bytes of one token that each block keeps."""
        assert lora is not None, "it trains adapters alone"
        own = kept_per_token(graph, tp, ep, checkpointing, split=split, lora=lora._replace(dropout=False))
        more = _kept_besides(graph, tp, ep, packed=self.packed)
        return tuple(KeptOfLayer(one.kept + extra, one.again) for one, extra in zip(own, more, strict=True))


@kept_with(maxsize=64)
def _kept_besides(graph: LayerGraph, tp: int, ep: int, *, packed: bool) -> tuple[int, ...]:
    """Bytes of one token of each block beside those of the plan's own law."""

    def saved(*names: str) -> tuple[int, ...]:
        return saved_per_token(graph, tp, ep, frozenset(names))

    joint, padded, norms = saved("query", "key"), saved("query", "value"), saved("output")
    inputs = saved("normed_input", "product") if packed else (0,) * graph.num_layers
    mask = graph.hidden_size
    return tuple(sum(each) + mask for each in zip(joint, padded, norms, inputs, strict=True))


def litgpt_bytes(row: Row, graph: LayerGraph) -> int | str:
    """Bytes at the peak of a row of lit-gpt's table, or why there is no prediction."""
    batch, length = row.number("batch_or_concurrency"), row.number("isl")
    if batch is None or length is None or row.precision_weights not in ("bf16", *_SCHEMES):
        return "batch, length or number format is not published in the row"
    base = _base(_SCHEMES[row.precision_weights]) if row.precision_weights in _SCHEMES else None
    train = TrainSetting(
        optimizer="adamw-bf16",
        checkpointing="none",
        gradient_bytes=2,
        micro_batch=batch,
        lora=LORA,
        base=base,
    )
    (stage,) = stages(graph, base or scheme_of(scheme_named("bf16")), 1, 1, 1)
    law = LitGPTMemory(packed=base is not None, logit_bytes=_LOGITS)
    if base is None:
        return _total(graph, train, stage, law, length, batch)
    head = graph.model.text.head.vocab_size * graph.hidden_size
    later = LitGPTMemory(packed=True, logit_bytes=_LOGIT_GRADIENTS)
    unpacking = _total(graph, train, stage, later, length, batch) + _UNPACKED * head
    return max(_total(graph, train, stage, law, length, batch), unpacking)


def _total(
    graph: LayerGraph, train: TrainSetting, stage: PipelineStage, law: TrainerMemory, length: int, batch: int
) -> int:
    state = stage_state(graph, train, Layout(), stage, law).with_batch(length, batch)
    return state.weights + state.gradients + state.optimizer + state.activations


def _base(name: str) -> Scheme:
    """The scheme with a packed head, which lit-gpt's plugin does not leave out."""
    table = scheme_named(name)
    rules = tuple(
        rule.model_copy(update={"parts": (*rule.parts, "head"), "roles": (*rule.roles, "head")}) for rule in table.rules
    )
    return scheme_of(Quantization.model_copy(table, update={"name": f"{name} with head", "rules": rules}))
