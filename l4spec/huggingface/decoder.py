"""A decoder of grouped-query attention as data: a table of fields, used for reading and for writing.

A family that fits is one `Decoder` with its defaults and names; others have functions for reading and writing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from l4spec.huggingface.experts import ExpertFields
from l4spec.huggingface.family import first, needed
from l4spec.huggingface.fields import Fields
from l4spec.huggingface.rope import Layout
from l4spec.huggingface.text import (
    FULL,
    SLIDING,
    Data,
    attention_of,
    block,
    local_size,
    num_layers,
    read_gqa,
    read_layer_types,
    read_text,
    window,
    write_gqa,
    write_layer_types,
    write_text,
)
from l4spec.layers.attention.masks import SlidingWindowMask
from l4spec.layers.base import LayerSpec
from l4spec.layers.geglu.spec import GeGLUSpec
from l4spec.layers.gqa.spec import GQASpec
from l4spec.layers.moe.spec import MoESpec
from l4spec.layers.swiglu.spec import SwiGLUSpec
from l4spec.spec.origin import RopeStyle
from l4spec.spec.resolve import ResolvedBlock, ResolvedModel

Switch = bool | str
"""A constant, or the name of the field that has the value."""
Windows = Literal["none", "every", "by_type"]
"""Layers with a sliding window: none, every one if `sliding_window` has a size, or those that `layer_types` names."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """Layers of a family. The defaults are Llama's."""

    qkv_bias: Switch = False
    output_bias: Switch = False
    qk_norm: Literal["head", "width"] | None = None
    qk_norm_field: str | None = None
    """Field that switches `qk_norm` on; None if it always is."""
    attention: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every attention part that are always the same."""
    layout: Layout = "half"
    partial: float = 1.0
    """Default of the rotated share of each head."""
    windows: Windows = "none"
    window_names: tuple[str, str] = ("sliding", "full")
    usual_types: tuple[str, ...] = (SLIDING, FULL)
    """The pattern of `layer_types` where the config leaves it out."""
    form: str = "pre_norm"
    unit_offset: bool = False
    """Norms, those of queries and keys too, are 1 + weight."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by the square root of their width."""
    activation: tuple[str, str] = ("hidden_act", "silu")
    """Field and value of the gate's activation: silu, or gelu_pytorch_tanh for GeGLU."""
    experts: ExpertFields | None = None

    def read(self, fields: Fields) -> Data:
        """The section `text` of a spec."""
        fields.expect(*self.activation)
        count = num_layers(fields)
        attention = self._attention(fields)
        parts, names = self._by_window(fields, attention, count)
        feed_forward, ffns = self._feed_forward(fields, count)
        blocks = [block(name, ffn, self.form) for name, ffn in zip(names, ffns, strict=True)]
        offset = {"unit_offset": True} if self.unit_offset else {}
        more: Data = {"norm": {"kind": "rmsnorm", "eps": fields.number("rms_norm_eps"), **offset}}
        if self.scaled_embedding:
            more["embedding_scale"] = math.sqrt(fields.size("hidden_size"))
        return {"text": read_text(fields, {**parts, **feed_forward}, blocks, **more)}

    def _attention(self, fields: Fields) -> Data:
        more: Data = dict(self.attention)
        for name, switch in (("qkv_bias", self.qkv_bias), ("output_bias", self.output_bias)):
            if fields.flag(switch) if isinstance(switch, str) else switch:
                more[name] = True
        if self.qk_norm and (self.qk_norm_field is None or fields.flag(self.qk_norm_field)):
            over = {} if self.qk_norm == "head" else {"over": self.qk_norm}
            offset = {"unit_offset": True} if self.unit_offset else {}
            more["qk_norm"] = {"kind": "rmsnorm", "eps": fields.number("rms_norm_eps"), **over, **offset}
        return read_gqa(fields, self.layout, partial=self.partial, **more)

    def _by_window(self, fields: Fields, attention: Data, count: int) -> tuple[Data, list[str]]:
        """Attention parts by name, and the one of each layer."""
        if self.windows == "none":
            return {"attention": attention}, ["attention"] * count
        size = fields.size_or_none("sliding_window")
        if self.windows == "every":
            return {"attention": {**attention, "mask": window(size)}}, ["attention"] * count
        usual = [self.usual_types[index % len(self.usual_types)] for index in range(count)]
        types = read_layer_types(fields, usual, (FULL, SLIDING))
        if SLIDING in types and size is None:
            fields.problem("sliding_window", "missing, but there are layers of sliding_attention")
        if SLIDING not in types:
            fields.carry("sliding_window")
        names = dict(zip((SLIDING, FULL), self.window_names, strict=True))
        masks = {SLIDING: window(size), FULL: window(None)}
        parts = {names[kind]: {**attention, "mask": masks[kind]} for kind in sorted(set(types), reverse=True)}
        return parts, [names[kind] for kind in types]

    def _feed_forward(self, fields: Fields, count: int) -> tuple[Data, list[str]]:
        """Feed-forward parts by name, and the one of each layer."""
        if self.experts is None:
            return {"ffn": self._dense(fields)}, ["ffn"] * count
        sparse = self.experts.sparse(fields, count)
        parts: Data = {}
        if not all(sparse):
            parts["dense"] = self._dense(fields)
        elif self.experts.width != "intermediate_size":
            fields.carry("intermediate_size")
        if any(sparse):
            parts["moe"] = self.experts.read(fields)
        else:
            fields.carry(*self.experts.fields())
        return parts, ["moe" if moe else "dense" for moe in sparse]

    def _dense(self, fields: Fields) -> Data:
        size = fields.size("intermediate_size")
        if self.activation[1] == "silu":
            return {"kind": "swiglu", "intermediate_size": size}
        return {"kind": "geglu", "intermediate_size": size, "approximate": "tanh"}

    def write(self, model: ResolvedModel, style: RopeStyle) -> Data:
        """Fields of the config by the table; the export finds differences by reading the config again."""
        blocks = model.text.stack.blocks
        attention = needed(blocks, GQASpec, "grouped-query attention")
        size = local_size(blocks, SlidingWindowMask)
        return {
            **write_text(model.text, style),
            **write_gqa(attention, style, partial=self.partial),
            self.activation[0]: self.activation[1],
            **self._write_switches(attention),
            **({} if self.windows == "none" else {"sliding_window": size}),
            **({"layer_types": write_layer_types(blocks)} if self.windows == "by_type" else {}),
            **self._write_feed_forward(blocks),
        }

    def _write_switches(self, attention: GQASpec) -> Data:
        switches = {self.qkv_bias: attention.qkv_bias, self.output_bias: attention.output_bias}
        switches[self.qk_norm_field or ""] = attention.qk_norm is not None
        return {name: value for name, value in switches.items() if isinstance(name, str) and name}

    def _write_feed_forward(self, blocks: Sequence[ResolvedBlock]) -> Data:
        dense: LayerSpec | None = first(blocks, SwiGLUSpec) or first(blocks, GeGLUSpec)
        width = {} if dense is None else {"intermediate_size": getattr(dense, "intermediate_size")}  # noqa: B009
        moe = first(blocks, MoESpec)
        if self.experts is None:
            return {"intermediate_size": needed_width(dense)}
        if moe is None:
            return width
        return {**width, **self.experts.write(moe, blocks)}


def needed_width(dense: LayerSpec | None) -> int:
    """The width of a gated layer. Raises SpecError where there is none."""
    from l4spec.errors import Problem, SpecError

    if not isinstance(dense, SwiGLUSpec | GeGLUSpec):
        raise SpecError([Problem("has no gated feed-forward layer", path="text.parts")])
    return dense.intermediate_size


__all__ = ["Decoder", "attention_of", "needed_width"]
