"""All layer kinds: the ones of this package, listed by name, and those that other packages register.

A kind of ours is imported on first access by name, so that a model imports only the kinds that it has. A package adds a
kind by an entry point in the group `l4spec.layers` whose object is a `LayerKind`. Entry points are loaded for a name
that is not ours, or for the list of all kinds, because the packages that they load import this module.
"""

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from l4spec.errors import UserError
from l4spec.layers.base import LayerKind, LayerSpec, Slot, Width
from l4spec.layers.declaration import Declaration

if TYPE_CHECKING:
    from l4spec.layers.common.eager import EagerLayer

OWN_NAMES = (
    "add",
    "compressed_attention",
    "concat",
    "embedding",
    "gated_delta_net",
    "geglu",
    "gqa",
    "kda",
    "layernorm",
    "learned_position",
    "linear",
    "lm_head",
    "mamba2",
    "merge",
    "mla",
    "mlp",
    "moe",
    "patch_embedding",
    "patch_merger",
    "pixel_shuffle_mlp",
    "residual_streams",
    "rmsnorm",
    "sparse_mla",
    "swiglu",
)
"""The kinds of this package, each a folder of its name whose `KIND` it is."""
ENTRY_POINT_GROUP = "l4spec.layers"
OWN_KINDS_ONLY = "L4SPEC_OWN_KINDS_ONLY"
"""The environment variable that leaves out the kinds of other packages, broken ones too."""


class _Kinds(Mapping[str, LayerKind]):
    """Every known layer kind by its name, imported on first access."""

    def __getitem__(self, name: str) -> LayerKind:
        return _own(name) if name in OWN_NAMES else _others()[name]

    def __iter__(self) -> Iterator[str]:
        yield from OWN_NAMES
        yield from _others()

    def __len__(self) -> int:
        return len(OWN_NAMES) + len(_others())

    def __contains__(self, name: object) -> bool:
        return name in OWN_NAMES or name in _others()


KINDS: Mapping[str, LayerKind] = _Kinds()
"""Every known layer kind by its name, imported on first access."""


@lru_cache(maxsize=len(OWN_NAMES))
def _own(name: str) -> LayerKind:
    kind: LayerKind = import_module(f"{__name__}.{name}").KIND
    return kind


@lru_cache(maxsize=1)
def _others() -> Mapping[str, LayerKind]:
    kinds: dict[str, LayerKind] = {}
    for entry_point in () if os.environ.get(OWN_KINDS_ONLY) else entry_points(group=ENTRY_POINT_GROUP):
        kind = _loaded(entry_point)
        if kind.name in OWN_NAMES or kind.name in kinds:
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
    return tuple(kind.spec for kind in KINDS.values() if kind.slot == slot)


@lru_cache(maxsize=4096)
def declaration_of(spec: LayerSpec, width: Width) -> Declaration:
    """The declaration of a layer; equal layers share one object."""
    declare: Any = KINDS[spec.kind].declare
    result: Declaration = declare(spec, width)
    return result


@lru_cache(maxsize=256)
def eager_layer(kind: str) -> "EagerLayer | None":
    """Description of the eager execution of a kind's module, imported on first use; None if the kind has none."""
    place = KINDS[kind].eager
    if place is None:
        return None
    module, _, name = place.partition(":")
    result: EagerLayer = getattr(import_module(module), name)
    return result
