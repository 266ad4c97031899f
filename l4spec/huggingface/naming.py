"""The names under which checkpoints of a family store its tensors: prefixes of ours, and theirs.

Sources: `modeling_*.py` of each family in huggingface/transformers, its `conversion_mapping.py` (the names that
`save_pretrained` writes are those of the published checkpoints), and the index files of published checkpoints.
Linear weights are [out, in] there as here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

LAYER = re.compile(r"\.layers\.(\d+)\.")
TEXT_LAYER, MODULE = "text.layers.#.", "mtp.layers.#."
"""Prefixes of our names: of a block's tensors, and of those of a module of multi-token prediction."""
FFN = f"{TEXT_LAYER}ffn."
Renames = Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class ModuleNaming:
    """Names of the tensors of modules of multi-token prediction in a family, beside those of a block of the model.

    `renames` maps our names inside a module to theirs below `prefix`; `block` is the prefix of its block below that.
    `#` is the module's index, which follows the model's layers with `after_layers` (DeepSeek-V3), else counts from 0.
    """

    renames: Mapping[str, str]
    prefix: str
    block: str
    after_layers: bool

    def first_index(self, num_layers: int) -> int:
        """The index of the first module of a model with so many layers."""
        return num_layers if self.after_layers else 0


@dataclass(frozen=True, slots=True)
class Naming:
    """Tensor names of a family. `#` stands for a layer's index; the longest matching prefix applies.

    `renames` maps a prefix of our names to one of theirs, or to several of which the first is written. `each` names an
    expert's gate, up and down projection if every expert is stored separately; `fused_in_out` is the orientation of a
    stack of gate and up projections: [expert, in, 2 out] (True) or [expert, 2 out, in].
    """

    renames: Renames
    each: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    fused_in_out: bool = False
    fused_first: bool = False
    fused_both: bool = False
    """True if stacks may have the other orientation too (Qwen3-VL's: transformers 5 turns the published ones)."""
    in_turns: bool = False
    """True if a stack's gates and ups are interleaved, with biases beside them, [expert, in, 2 out] (gpt-oss)."""
    stacked: bool = False
    """True if the gates, the ups and the downs of all experts are one tensor each, `gate_proj.weight` (Step-3.7)."""
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """A stored tensor that holds the rows of several of ours one after the other: its name to theirs, in order."""
    heads: Mapping[str, str] = field(default_factory=dict)
    """Of joined tensors those whose rows go head by head: the first head's rows of each part, then the second's. Their
    name to the tensor of ours whose heads count."""
    unit_dims: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of joined tensors those that are stored with dimensions of 1 around the first one: how many before and after."""
    convolutions: tuple[str, ...] = ()
    """Our names of matrices that are stored as convolutions over a tower's patches, [out, channels, frames, rows,
    columns]."""
    of_towers: tuple[str, ...] = ()
    """Stored tensors of towers, which a model without one does not read."""
    kinds: tuple[str, ...] = ()
    """Kinds of attention whose tensors have names of their own: `.attention.` is `.KIND.` in the tables then."""
    next_token_layers: int = 0
    """Layers after the last one that published checkpoints hold, for multi-token prediction (DeepSeek-V3: 1)."""
    modules: ModuleNaming | None = None
    """Names of modules of multi-token prediction; None if checkpoints of the family are not known to have them."""
    optional: tuple[str, ...] = (r"\.rotary_emb\.inv_freq$",)
    """Stored tensors that older versions wrote and that are not read."""

    def tagged(self, full: str, kind: str) -> str:
        """The name of a tensor of ours as the tables know it: with its kind where that has names of its own."""
        return full.replace(".attention.", f".{kind}.", 1) if kind in self.kinds else full

    def heads_of(self, stored: str) -> str:
        """The tensor of ours whose heads count where rows go head by head; nothing if parts follow whole."""
        pattern, index = _pattern(stored)
        return self.heads.get(pattern, "").replace("#", index)

    def unit_dims_of(self, stored: str) -> tuple[int, int]:
        """Number of dimensions of size 1 before and after a stored tensor's first one; usually none."""
        return self.unit_dims.get(_pattern(stored)[0], (0, 0))

    def joining(self, full: str) -> str | None:
        """The stored tensor that holds this one of ours among others; None if it is stored alone."""
        pattern, index = _pattern(full)
        result = (stored for stored, ours in self.joined.items() if pattern in ours)
        return next((stored.replace("#", index) for stored in result), None)

    def of_modules(self) -> "Naming | None":
        """The naming of modules, whose tensors are `mtp.layers.{index}.…` of ours; None if none is known."""
        if self.modules is None:
            return None
        prefix, block = self.modules.prefix, self.modules.prefix + self.modules.block

        def moved(theirs: str) -> str:
            return block + theirs.partition("layers.#.")[2]

        own = {f"{MODULE}{ours}": prefix + theirs for ours, theirs in self.modules.renames.items()}
        layers = {
            _in_module(ours): moved(theirs) if isinstance(theirs, str) else tuple(map(moved, theirs))
            for ours, theirs in self.renames.items()
            if ours.startswith(TEXT_LAYER)
        }
        return replace(
            self,
            renames={**layers, **own},
            joined={moved(stored): tuple(map(_in_module, ours)) for stored, ours in self.joined.items()},
            heads={moved(stored): _in_module(ours) for stored, ours in self.heads.items()},
            unit_dims={moved(stored): dims for stored, dims in self.unit_dims.items()},
            convolutions=(),
        )

    def of(self, full: str) -> tuple[str, ...]:
        """The stored names of a tensor of ours, the one that is written first; none when there is no prefix of it."""
        pattern, index = _pattern(full)
        prefix = max((prefix for prefix in self.renames if pattern.startswith(prefix)), key=len, default=None)
        if prefix is None:
            return ()
        theirs, rest = self.renames[prefix], pattern.removeprefix(prefix)
        return tuple((name + rest).replace("#", index) for name in ((theirs,) if isinstance(theirs, str) else theirs))


def _in_module(ours: str) -> str:
    return MODULE + ours.removeprefix(TEXT_LAYER)


def _pattern(full: str) -> tuple[str, str]:
    """A name with `#` for the index of its layer, and that index."""
    layer = LAYER.search(full)
    return (full.replace(layer.group(), ".layers.#.", 1), layer.group(1)) if layer else (full, "")


DECODER: Mapping[str, str] = {
    "text.embedding.": "model.embed_tokens.",
    "text.norm.": "model.norm.",
    "text.head.": "lm_head.",
    "text.layers.#.attention_norm.": "model.layers.#.input_layernorm.",
    "text.layers.#.attention.": "model.layers.#.self_attn.",
    "text.layers.#.ffn_norm.": "model.layers.#.post_attention_layernorm.",
    FFN: "model.layers.#.mlp.",
}
"""Llama's names, which most decoders share."""
SANDWICH: Mapping[str, str] = {
    **DECODER,
    "text.layers.#.attention_post_norm.": "model.layers.#.post_attention_layernorm.",
    "text.layers.#.ffn_norm.": "model.layers.#.pre_feedforward_layernorm.",
    "text.layers.#.ffn_post_norm.": "model.layers.#.post_feedforward_layernorm.",
}
"""Gemma's names of four norms per block."""
GATED: Mapping[str, str] = {**DECODER, f"{FFN}router.": "model.layers.#.mlp.gate."}
"""Names of a mixture of experts whose router is called gate."""

AFTER_LAYERS = ModuleNaming(
    {
        "embedding.": "embed_tokens.",
        "embedding_norm.": "enorm.",
        "hidden_norm.": "hnorm.",
        "projection.proj.": "eh_proj.",
        "norm.": "shared_head.norm.",
        "head.": "shared_head.head.",
    },
    prefix="model.layers.#.",
    block="",
    after_layers=True,
)
"""DeepSeek-V3's names (README_WEIGHTS.md beside its weights): a module is one more layer, with tensors of its own."""


def inside(prefix: str, renames: Renames) -> dict[str, str | tuple[str, ...]]:
    """The same names below a prefix: `model.layers` as `language_model.model.layers`.

    A prefix `model.language_model.` takes the place of `model.`, and leaves the head where it is.
    """
    return {
        ours: below(prefix, theirs) if isinstance(theirs, str) else tuple(below(prefix, name) for name in theirs)
        for ours, theirs in renames.items()
    }


def below(prefix: str, name: str) -> str:
    """A stored name below a prefix, as `inside` lays it."""
    if not prefix.startswith("model."):
        return f"{prefix}{name}"
    return f"{prefix}{name.removeprefix('model.')}" if name.startswith("model.") else name
