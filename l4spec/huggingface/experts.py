"""A mixture of experts as data: a table of fields, used for reading and for writing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from l4spec.huggingface.fields import Fields
from l4spec.layers.moe.spec import MoESpec
from l4spec.spec.resolve import ResolvedBlock

Data = dict[str, Any]
Places = Literal["all", "after_dense", "by_step"]
"""Layers with experts: all, those after the first `first_k_dense_replace`, or every `decoder_sparse_step`-th one that
`mlp_only_layers` does not name."""


@dataclass(frozen=True, slots=True)
class ExpertFields:
    """Names of the fields of a mixture, and fixed values. A field without a name has a constant value."""

    num: str = "num_experts"
    per_token: str = "num_experts_per_tok"
    width: str = "moe_intermediate_size"
    shared: str | int = 0
    """Number of shared experts, or the field that has it."""
    shared_width: str | None = None
    """Field of a shared expert's own width."""
    renormalize: str | bool = True
    scaling: str | None = None
    groups: bool = False
    """True if `n_group` and `topk_group` limit the choice."""
    router: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the router that are always the same: score, scales, correction_bias."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the mixture that are always the same."""
    places: Places = "all"

    def fields(self) -> tuple[str, ...]:
        """Every field of a config that is about experts."""
        names = (self.num, self.per_token, self.width, self.shared, self.shared_width, self.renormalize, self.scaling)
        groups = ("n_group", "topk_group") if self.groups else ()
        return (*(name for name in names if isinstance(name, str)), *groups)

    def sparse(self, fields: Fields, count: int) -> list[bool]:
        """For each layer, True if it has experts."""
        if self.places == "after_dense":
            num_dense = min(fields.count("first_k_dense_replace"), count)
            fields.carry("first_k_dense_replace")
            return [index >= num_dense for index in range(count)]
        if self.places == "by_step":
            step, dense = fields.size("decoder_sparse_step"), set(fields.integers("mlp_only_layers") or ())
            fields.carry("decoder_sparse_step", "mlp_only_layers")
            return [index not in dense and (index + 1) % step == 0 for index in range(count)]
        return [True] * count

    def read(self, fields: Fields) -> Data:
        """The part of a spec."""
        router: Data = {"score": "softmax", "scales": "output", **self.router}
        renormalize = fields.flag(self.renormalize) if isinstance(self.renormalize, str) else self.renormalize
        router["renormalize"] = renormalize
        if self.scaling:
            router["scaling_factor"] = fields.number(self.scaling)
        if self.groups:
            router |= {"num_groups": fields.size("n_group"), "num_limited_groups": fields.size("topk_group")}
            router.setdefault("group_score", "top2_sum")
        shared = fields.count(self.shared) if isinstance(self.shared, str) else self.shared
        return {
            "kind": "moe",
            "num_experts": fields.size(self.num),
            "num_experts_per_token": fields.size(self.per_token),
            **({"num_shared_experts": shared} if shared else {}),
            "intermediate_size": fields.size(self.width),
            **({"shared_intermediate_size": fields.size(self.shared_width)} if shared and self.shared_width else {}),
            **self.others,
            "router": router,
        }

    def write(self, moe: MoESpec, blocks: Sequence[ResolvedBlock]) -> Data:
        """The fields that say so."""
        router = moe.router
        values: dict[Any, Any] = {
            self.num: moe.num_experts,
            self.per_token: moe.num_experts_per_token,
            self.width: moe.intermediate_size,
            self.shared: moe.num_shared_experts,
            self.shared_width: moe.shared_intermediate_size or moe.intermediate_size,
            self.renormalize: router.renormalize,
            self.scaling: router.scaling_factor,
        }
        groups = {"n_group": router.num_groups, "topk_group": router.num_limited_groups} if self.groups else {}
        return {**_named(values), **groups, **self._write_places(blocks)}

    def _write_places(self, blocks: Sequence[ResolvedBlock]) -> Data:
        sparse = [item.ffn is not None and isinstance(item.ffn.spec, MoESpec) for item in blocks]
        if self.places == "after_dense":
            return {"first_k_dense_replace": sparse.index(True)}
        return write_steps(sparse) if self.places == "by_step" else {}


def write_steps(sparse: Sequence[bool]) -> Data:
    """The step that explains most dense layers, and the others by index."""
    step = list(sparse).index(True) + 1
    fits = all((index + 1) % step == 0 for index, moe in enumerate(sparse) if moe)
    step = step if fits else 1
    dense = [index for index, moe in enumerate(sparse) if not moe and (index + 1) % step == 0]
    return {"decoder_sparse_step": step, "mlp_only_layers": dense}


def _named(values: Mapping[Any, Any]) -> Data:
    return {name: value for name, value in values.items() if isinstance(name, str)}
