"""The torch module of multi-token prediction, which predicts one token further from a model's hidden states."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from l4spec.errors import UserError
from l4spec.graph.build import MTP_SHARED, mtp_graph
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.common.modules import Context, LayerModule
from l4spec.runtime.build import module_of
from l4spec.runtime.initialize import initialize_layer
from l4spec.runtime.layout import align
from l4spec.runtime.model import Model


class MTPModule(nn.Module):
    """One module of multi-token prediction (DeepSeek-V3, arXiv:2412.19437, section 2.2); made by `build_mtp`.

    Its own layers are `layers.{place}` with places as in the graph, dots as underscores. Embedding and head are those
    of the model, called but not registered: `state_dict` has the module's own tensors only.
    """

    def __init__(self, graph: LayerGraph, model: Model) -> None:
        super().__init__()
        self.graph = graph
        self.layers = nn.ModuleDict()
        self._shared: dict[str, LayerModule] = {}
        for node in graph.nodes:
            if node.role in MTP_SHARED:
                shared = model.get_submodule(node.id)
                assert isinstance(shared, LayerModule)
                self._shared[node.id] = shared
            else:
                self.layers[_key(node.id)] = module_of(node)

    @property
    def own_ids(self) -> tuple[str, ...]:
        """Ids in `graph` of the layers that are not the model's."""
        return tuple(node.id for node in self.graph.nodes if node.role not in MTP_SHARED)

    def layer(self, node_id: str) -> LayerModule:
        """The module of a node of `graph`."""
        module = self._shared.get(node_id) or self.layers[_key(node_id)]
        assert isinstance(module, LayerModule)
        return module

    def forward(self, hidden: Tensor, next_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [batch, tokens, vocab] in fp32, and the hidden states [batch, tokens, hidden] for a further module.

        `hidden` [batch, tokens, hidden] is the model's final hidden state (`hidden_states`), or the second result of
        the previous module; `next_ids` [batch, tokens] are the tokens one place further: logits at place t of the first
        module are those of token t + 2. Rows have no padding. Raises ValueError for shapes that do not match.
        """
        if hidden.shape[:-1] != next_ids.shape:
            raise ValueError(f"hidden {tuple(hidden.shape)} and next_ids {tuple(next_ids.shape)} differ in places")
        batch = align(next_ids, None, None, None)
        context = Context(batch.layout)
        context.token_ids = batch.input_ids
        embedded = self.layer("text.embedding")(batch.input_ids, context=context)
        normed, stream = module_states(self.graph, self.layer, embedded, hidden, context)
        logits: Tensor = self.layer("text.head")(normed, context=context)
        return logits, stream


def module_states(
    graph: LayerGraph, layer: Callable[[str], LayerModule], embedded: Tensor, hidden: Tensor, context: Context
) -> tuple[Tensor, Tensor]:
    """Input of the module's head, and output of its block, both [batch, tokens, hidden].

    `graph` is the module's, `layer` maps a node's id to its module. `embedded` is the embedding of the next tokens and
    `hidden` the hidden state that the module reads, both [batch, tokens, hidden].
    """
    values = {"text.embedding": embedded}
    for node in graph.nodes:
        if node.role not in MTP_SHARED:
            given = [values[name] for name in graph.inputs_of(node.id)] or [hidden]
            values[node.id] = layer(node.id)(*given, context=context)
    (last,) = graph.inputs_of("text.norm")
    return values["text.norm"], values[last]


def _key(node_id: str) -> str:
    return node_id.removeprefix("text.").replace(".", "_")


def hidden_states(model: Model, input_ids: Tensor) -> Tensor:
    """Final hidden states [batch, tokens, hidden] after the last norm, as vLLM passes them to a module."""
    kept: list[Tensor] = []
    head = model.get_submodule("text.head")
    hook = head.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    try:
        model(input_ids)
    finally:
        hook.remove()
    return kept[0]


def build_mtp(model: Model, *, seed: int | None = 0) -> tuple[MTPModule, ...]:
    """Build the modules that the model's spec declares, on its device and in its number format, with random weights.

    `seed=None` leaves the weights uninitialized. Raises UserError for a model that declares none.
    """
    graph = mtp_graph(model.graph)
    declared = model.graph.model.text.mtp
    if graph is None or declared is None:
        raise UserError(f"{model.graph.name} declares no multi-token prediction", hint="add text.mtp to the spec")
    return tuple(_built(graph, model, None if seed is None else seed + index) for index in range(declared.num_modules))


def _built(graph: LayerGraph, model: Model, seed: int | None) -> MTPModule:
    with torch.device("meta"):
        module = MTPModule(graph, model)
    module.to(dtype=model.dtype)
    if model.device.type != "meta":
        module.to_empty(device=model.device)
        if seed is not None:
            for node in graph.nodes:
                if node.role not in MTP_SHARED:
                    initialize_layer(module.layer(node.id), node, seed)
    return module.eval()
