"""Modules of multi-token prediction that a run has trained: from its step folder into a model and its modules."""

from pathlib import Path
from typing import TYPE_CHECKING

from l4spec.graph.with_modules import module_place, with_modules
from l4spec.layers.common.modules import LayerModule
from l4spec.runtime.model import Model
from l4spec.runtime.mtp import MTPModule, build_mtp
from l4spec.runtime.parallel.checkpoints.sharded import load_sharded

if TYPE_CHECKING:
    from collections.abc import Iterator


def load_modules(model: Model, directory: Path | str, *, verify: bool = True) -> tuple[MTPModule, ...]:
    """Fill a whole model from a step folder whose run trained its modules, and return these, filled too.

    Raises UserError for a model that declares none, and as `load_sharded` does: for a folder without them, too.
    """
    modules = build_mtp(model, seed=None)
    load_sharded(Model(with_modules(model.graph), dict(_layers(model, modules))), directory, verify=verify)
    return modules


def _layers(model: Model, modules: tuple[MTPModule, ...]) -> "Iterator[tuple[str, LayerModule]]":
    """Every layer of the model and of its modules, by its id in the graph with both; nothing is copied."""
    for node in model.graph.nodes:
        layer = model.get_submodule(node.id)
        assert isinstance(layer, LayerModule)
        yield node.id, layer
    for index, module in enumerate(modules):
        for node_id in module.own_ids:
            yield module_place(index, node_id), module.layer(node_id)
