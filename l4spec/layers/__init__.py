"""All layer kinds: the ones of this package, listed, and those that other packages register.

A package adds a kind by an entry point in the group `l4spec.layers` whose object is a `LayerKind`. Entry points are
loaded when kinds are first asked for, not when this module is imported: what they load imports this module.
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from l4spec.errors import UserError
from l4spec.layers.add import KIND as _add
from l4spec.layers.base import LayerKind, LayerSpec, Slot, Width
from l4spec.layers.declaration import Declaration
from l4spec.layers.embedding import KIND as _embedding
from l4spec.layers.gated_delta_net import KIND as _gated_delta_net
from l4spec.layers.geglu import KIND as _geglu
from l4spec.layers.gqa import KIND as _gqa
from l4spec.layers.layernorm import KIND as _layernorm
from l4spec.layers.learned_position import KIND as _learned_position
from l4spec.layers.linear import KIND as _linear
from l4spec.layers.lm_head import KIND as _lm_head
from l4spec.layers.mamba2 import KIND as _mamba2
from l4spec.layers.merge import KIND as _merge
from l4spec.layers.mla import KIND as _mla
from l4spec.layers.mlp import KIND as _mlp
from l4spec.layers.moe import KIND as _moe
from l4spec.layers.patch_embedding import KIND as _patch_embedding
from l4spec.layers.pixel_shuffle_mlp import KIND as _pixel_shuffle_mlp
from l4spec.layers.rmsnorm import KIND as _rmsnorm
from l4spec.layers.sparse_mla import KIND as _sparse_mla
from l4spec.layers.swiglu import KIND as _swiglu

if TYPE_CHECKING:
    from l4spec.layers.common.eager import EagerLayer

_OWN = (
    _add,
    _embedding,
    _gated_delta_net,
    _geglu,
    _gqa,
    _layernorm,
    _learned_position,
    _linear,
    _lm_head,
    _mamba2,
    _merge,
    _mla,
    _mlp,
    _moe,
    _patch_embedding,
    _pixel_shuffle_mlp,
    _rmsnorm,
    _sparse_mla,
    _swiglu,
)
ENTRY_POINT_GROUP = "l4spec.layers"
OWN_KINDS_ONLY = "L4SPEC_OWN_KINDS_ONLY"
"""The environment variable that leaves out the kinds of other packages, broken ones too."""


KINDS: Mapping[str, LayerKind]
"""Every known layer kind by its name."""


def __getattr__(name: str) -> Mapping[str, LayerKind]:
    if name != "KINDS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _all_kinds()


@lru_cache(maxsize=1)
def _all_kinds() -> Mapping[str, LayerKind]:
    kinds = {kind.name: kind for kind in _OWN}
    for entry_point in () if os.environ.get(OWN_KINDS_ONLY) else entry_points(group=ENTRY_POINT_GROUP):
        kind = _loaded(entry_point)
        if kind.name in kinds:
            raise _unusable(entry_point, f"there is a kind {kind.name!r} already")
        kinds[kind.name] = kind
    return MappingProxyType(kinds)


def _loaded(entry_point: EntryPoint) -> LayerKind:
    try:
        kind = entry_point.load()
    except Exception as error:
        raise _unusable(entry_point, f"{type(error).__name__}: {error}") from error
    if not isinstance(kind, LayerKind):
        raise _unusable(entry_point, f"expected a LayerKind, found {kind!r}")
    return kind


def _unusable(entry_point: EntryPoint, reason: str) -> UserError:
    package = entry_point.dist.name if entry_point.dist else "a package"
    message = f"the layer kind {entry_point.value!r} of {package} cannot be used: {reason}"
    return UserError(message, hint=f"fix or uninstall that package, or set {OWN_KINDS_ONLY}=1")


def specs_for(slot: Slot) -> tuple[type[LayerSpec], ...]:
    """The schemas that an author may choose from for a slot."""
    return tuple(kind.spec for kind in _all_kinds().values() if kind.slot == slot)


@lru_cache(maxsize=4096)
def declaration_of(spec: LayerSpec, width: Width) -> Declaration:
    """The declaration of a layer; equal layers share one object."""
    declare: Any = _all_kinds()[spec.kind].declare
    result: Declaration = declare(spec, width)
    return result


@lru_cache(maxsize=256)
def eager_layer(kind: str) -> "EagerLayer | None":
    """How the module of a kind runs eagerly, loaded when first asked for; None where a kind does not say."""
    place = _all_kinds()[kind].eager
    if place is None:
        return None
    module, _, name = place.partition(":")
    result: EagerLayer = getattr(import_module(module), name)
    return result
