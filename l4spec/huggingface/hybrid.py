"""Shared code of Qwen's hybrid families: three delta nets, then gated attention; norms are 1 + weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from l4spec.huggingface.decoder import Decoder
from l4spec.huggingface.family import first
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.modules import with_modules, written_modules
from l4spec.huggingface.naming import DECODER, ModuleNaming
from l4spec.huggingface.text import FULL, Block, Data, num_layers, read_layer_types, write_blocks
from l4spec.layers.gated_delta_net.spec import GatedDeltaNetSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedBlock, ResolvedModel

LINEAR = "linear_attention"
KIND = "gated_delta_net"
_FIELDS = {
    "num_key_heads": "linear_num_key_heads",
    "num_value_heads": "linear_num_value_heads",
    "key_head_dim": "linear_key_head_dim",
    "value_head_dim": "linear_value_head_dim",
    "conv_kernel_size": "linear_conv_kernel_dim",
}
_ATTENTION, _DELTA = "text.layers.#.attention.", f"text.layers.#.{KIND}."
_SELF, _LINEAR = "model.layers.#.self_attn.", "model.layers.#.linear_attn."
NAMES = {
    **DECODER,
    _DELTA: _LINEAR,
    **{f"{_DELTA}{name}_proj.": f"{_LINEAR}in_proj_{name}." for name in "zba"},
}
JOINED = {
    f"{_SELF}q_proj.weight": (f"{_ATTENTION}q_proj.weight", f"{_ATTENTION}gate_proj.weight"),
    f"{_LINEAR}conv1d.weight": tuple(f"{_DELTA}{name}_conv" for name in "qkv"),
}
APART = {f"{_LINEAR}in_proj_qkv.weight": tuple(f"{_DELTA}{name}_proj.weight" for name in "qkv")}
"""Qwen3.5 stores queries, keys and values as rows one after the other."""
TOGETHER = {
    f"{_LINEAR}in_proj_qkvz.weight": tuple(f"{_DELTA}{name}_proj.weight" for name in "qkvz"),
    f"{_LINEAR}in_proj_ba.weight": tuple(f"{_DELTA}{name}_proj.weight" for name in "ba"),
}
"""Qwen3-Next stores them, and the gates, key head by key head."""
HEADS = {f"{_SELF}q_proj.weight": f"{_ATTENTION}q_proj.weight"}
KEY_HEADS = dict.fromkeys(TOGETHER, f"{_ATTENTION}k_proj.weight")
DEFAULTS: Data = {
    "head_dim": 256,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "layer_types": None,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
FIXED: dict[str, Sequence[Any]] = {
    "attn_output_gate": (True,),
    "output_gate_type": ("swish",),
    "mamba_ssm_dtype": ("float32",),
}
MODULES = "mtp_num_hidden_layers"
IGNORABLE = (MODULES, "mtp_use_dedicated_embeddings", "mtp")
QWEN_MODULE = ModuleNaming(
    {
        "embedding_norm.": "pre_fc_norm_embedding.",
        "hidden_norm.": "pre_fc_norm_hidden.",
        "projection.proj.": "fc.",
        "norm.": "norm.",
    },
    prefix="mtp.",
    block="layers.#.",
    after_layers=False,
)
"""Names of the one module, which has a block of full attention and the model's embedding and head (vLLM,
`qwen3_next_mtp.py` and `qwen3_5_mtp.py`)."""


@dataclass(frozen=True, slots=True)
class HybridDecoder:
    """A decoder of which most layers are delta nets: `layer_types`, or every `full_attention_interval`-th one full."""

    decoder: Decoder

    def read(self, fields: Fields) -> Data:
        """As the decoder, with delta nets in their layers."""
        spec = self.decoder.read(fields)
        count, interval = num_layers(fields), fields.size("full_attention_interval")
        fields.carry("full_attention_interval")
        usual = [LINEAR if (index + 1) % interval else FULL for index in range(count)]
        types = read_layer_types(fields, usual, (LINEAR, FULL))
        text = spec["text"]
        delta = {"kind": KIND, **{ours: fields.size(theirs) for ours, theirs in _FIELDS.items()}}
        delta["norm_eps"] = fields.number("rms_norm_eps")
        feed_forward = [block["ffn"] for block in laid_out_blocks(text["layers"])]
        names = {LINEAR: "delta", FULL: "attention"}
        parts = {"delta": delta, **text["parts"]} if LINEAR in types else text["parts"]
        if LINEAR not in types:
            fields.carry(*_FIELDS.values())
        if FULL not in types:
            parts = {name: part for name, part in parts.items() if name != "attention"}
        blocks: list[Block] = [
            (("attention", names[kind]), ("ffn", ffn)) for kind, ffn in zip(types, feed_forward, strict=False)
        ]
        spec = {**spec, "text": {**text, "parts": parts, "layers": write_blocks(blocks)}}
        if FULL not in types:
            return spec
        block: Data = {"attention": "attention", "ffn": feed_forward[-1]}
        return with_modules(fields, spec, MODULES, block, copies=False, most=1)

    def write(self, model: ResolvedModel, style: RopeStyle) -> Data:
        """As the decoder, with the sizes of delta nets."""
        blocks = model.text.stack.blocks
        delta = first(blocks, GatedDeltaNetSpec)
        sizes = {} if delta is None else {theirs: getattr(delta, ours) for ours, theirs in _FIELDS.items()}
        types = [LINEAR if _is_delta(item) else FULL for item in blocks]
        modules = written_modules(model, MODULES)
        return {**self.decoder.write(model, style), **sizes, "layer_types": types, **modules}


def laid_out_blocks(layers: Sequence[Data]) -> list[Data]:
    """The blocks of the listed layers, one by one."""
    blocks: list[Data] = []
    for item in layers:
        inner = item.get("blocks", [item])
        once = [block for block in inner for _ in range(block.get("repeat", 1) if "blocks" in item else 1)]
        blocks += once * item.get("repeat", 1)
    return blocks


def _is_delta(item: ResolvedBlock) -> bool:
    return item.attention is not None and isinstance(item.attention.spec, GatedDeltaNetSpec)
