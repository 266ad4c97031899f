"""The module that executes a layer graph."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.huggingface.tokens import image_token_of
from l4spec.layers.common.checkpointing import Checkpointing
from l4spec.layers.common.modules import Context, LayerModule, fast_for
from l4spec.quantization.scheme import Quantization
from l4spec.runtime import generate as generation
from l4spec.runtime.cache import Cache, new_cache
from l4spec.runtime.layout import TokenBatch, align, image_layout, last_tokens, restore, with_images
from l4spec.runtime.sampling import Sampling, choose

PATCH_TOKEN_ID = 200092
"""`<|patch|>`, the place of an image vector in Llama 4's vocabulary (llama-models, models/llama4/tokenizer.py)."""


INPUT = ""
"""Name of the model's own input: token ids for the text, pixels for the vision tower."""


class ModuleGroup(nn.Module):
    """A level of the module tree: `text`, `text.layers`, `text.layers.0`."""


@dataclass(frozen=True, slots=True)
class LayerStep:
    """One node's module, the nodes whose outputs it takes, and the values that are not needed after it."""

    node_id: str
    module: LayerModule
    inputs: tuple[str, ...]
    last_use_of: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """Nodes that run together, a block of the stack or a single layer: the unit of activation checkpointing.

    `inputs` names the values from outside, `last_use_of` those not needed later, `output` the result.
    """

    steps: tuple[LayerStep, ...]
    inputs: tuple[str, ...]
    last_use_of: tuple[str, ...]
    output: str

    def __call__(self, context: Context, *inputs: Tensor | None) -> Tensor:
        """Run the steps in order."""
        values: dict[str, Tensor | None] = dict(zip(self.inputs, inputs, strict=True))
        for step in self.steps:
            given = [values[name] for name in step.inputs]
            for name in step.last_use_of:
                del values[name]
            run = context.split.run if context.split is not None else _run_whole
            values[step.node_id] = run(step.module, given, context)
            del given
        result = values[self.output]
        assert result is not None
        return result


class Model(nn.Module):
    """Module that executes a layer graph; made by `l4spec.runtime.build.build`.

    `nodes` are the layers that run here, by default all of the graph; `has_head` is true if the last is the head.
    `module_nodes` are layers of modules of multi-token prediction, which run beside them (`l4spec.runtime.mtp`).
    `image_token_id` is the token whose places image vectors take, `quantization` the scheme that the weights are packed
    by (`l4spec.quantize`). `checkpointing` selects the activations that training recomputes in the backward pass
    (`l4spec.layers.common.checkpointing`). `record` and `loss_scale` are passed to every layer in training (`Context`).
    """

    generate = generation.generate
    stream = generation.stream

    def __init__(
        self, graph: LayerGraph, modules: Mapping[str, LayerModule], nodes: tuple[LayerNode, ...] | None = None
    ) -> None:
        super().__init__()
        self.graph = graph
        given = graph.nodes if nodes is None else nodes
        self.nodes = tuple(node for node in given if node.module is None)
        self.module_nodes = tuple(node for node in given if node.module is not None)
        self.image_token_id = _image_token(graph)
        self.checkpointing: Checkpointing = "none"
        self.quantization: Quantization | None = None
        self.record: Callable[[str, Tensor, Tensor], None] | None = None
        self.loss_scale = 1.0
        for node_id, module in modules.items():
            _place(self, node_id, module)
        for node in self.nodes:
            for parameter in node.declaration.parameters:
                if parameter.tied_to is not None:
                    modules[node.id].tie(parameter.name, modules[parameter.tied_to.rpartition(".")[0]])
        segments = tuple(_segments(graph, self.nodes, modules))
        is_text = {node.id: node.scope == "text" for node in self.nodes}
        self._vision = tuple(segment for segment in segments if not is_text[segment.output])
        self._text = tuple(segment for segment in segments if is_text[segment.output])
        self.has_head = self.nodes[-1].role == "head"
        self._patches = _patches_of(graph)
        self._class_token: Literal["first", "last", "none"] = self._patches.class_token if self._patches else "none"
        self._turns_by_places = any(
            rotation.over == "sections"
            for node in self.nodes
            if node.scope == "text" and node.declaration.mixing is not None
            for rotation in node.declaration.mixing.rotations
        )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the weights."""
        return next(self.parameters()).dtype

    @property
    def num_tokens_per_tile(self) -> int:
        """Text positions of an image tile; 0 for a model without vision."""
        vision = self.graph.model.vision
        return vision.num_tokens_per_tile if vision else 0

    def own_rows(self, batch: Tensor) -> Tensor:
        """The sequences of a batch [sequences, ...] that this process runs: all, unless ranks divide them."""
        return batch

    def choose_next(self, logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
        """The next token of every sequence of the batch, after the logits [own rows, tokens, vocab] of its own."""
        return choose(logits[:, -1], sampling, generator)

    def reads_ahead(self) -> AbstractContextManager[None]:
        """Context manager around the passes of a chunked prefill, of which only the last one's logits are used."""
        return nullcontext()

    def new_cache(self, batch: int, max_len: int, dtype: torch.dtype | None = None) -> Cache:
        """Preallocated caches for `batch` sequences of at most `max_len` tokens, in the weights' dtype by default."""
        return new_cache(self.nodes, batch, max_len, dtype or self.dtype, self.device)

    def forward(
        self,
        input_ids: Tensor,
        *,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        cache: Cache | None = None,
        logits: Literal["all", "last"] = "all",
    ) -> Tensor:
        """Logits in fp32, [batch, tokens, vocab], or [batch, 1, vocab] of each row's last token with `logits="last"`.

        `input_ids` [batch, tokens] are new tokens; with a `cache` (inference only) they follow those it has read.
        `attention_mask` [batch, tokens] is 0 at padding, on either side: a padded row equals the same row alone, its
        positions count real tokens from 0; logits at padding mean nothing. `sequence_ids` [batch, tokens] packs
        sequences into rows: a run of equal ids is one sequence, its positions start at 0. `pixel_values` [tiles,
        channels, height, width], or `image_features` from `encode_images`, fill the places of `image_token_id` in
        order. Raises ValueError for inputs that do not fit together.
        """
        batch = align(input_ids, attention_mask, sequence_ids, cache)
        fast = fast_for(batch.input_ids.numel(), next(self.parameters()))
        with torch.set_grad_enabled(torch.is_grad_enabled() and cache is None), fast:
            images = image_features if pixel_values is None else self.encode_images(pixel_values)
            if pixel_values is not None:
                batch = replace(batch, image_grid=self._token_grid(pixel_values))
            return self._forward(batch, images, cache, logits)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Tiles [tiles, channels, image_size, image_size] to image vectors [tiles, tokens per tile, hidden].

        With vectors for blocks of the text too (DeepStack) it is [tiles, tokens, (1 + blocks) hidden]. A tower without
        a learned vector per patch takes images of any size that is a multiple of patch size times fold.
        """
        if not self._vision or self._patches is None:
            raise ValueError(f"{self.graph.name} has no vision tower")
        grid = self._patches.grid_of(pixel_values)
        layout = image_layout(pixel_values.shape[0], grid, self._class_token, pixel_values.device)
        context = Context(layout, class_token=self._class_token, record=None if self.training else self.record)
        context.recomputes_core = self._recomputes("selective")
        return self._run(self._vision, context, {INPUT: pixel_values.to(self.dtype)})

    def _forward(
        self, batch: TokenBatch, image_features: Tensor | None, cache: Cache | None, logits: Literal["all", "last"]
    ) -> Tensor:
        context = self._context(batch, image_features, cache)
        hidden = self._hidden(context, batch, image_features, cache, batch.input_ids)
        return self._logits(context, batch, hidden, logits)

    def _context(self, batch: TokenBatch, image_features: Tensor | None, cache: Cache | None) -> Context:
        image_mask = None if image_features is None else self._image_mask(batch.input_ids, image_features)
        caches = cache.layers if cache else None
        layout, before = batch.layout, None if cache is None else cache.image_tokens
        if self._turns_by_places and (image_mask is not None or before is not None):
            layout = with_images(layout, image_mask, self._grid_after(batch, cache), before)
        context = Context(layout, caches, image_mask, record=self.record, loss_scale=self.loss_scale)
        context.token_ids = batch.input_ids
        context.recomputes_core = self._recomputes("selective")
        return context

    def _grid_after(self, batch: TokenBatch, cache: Cache | None) -> tuple[int, int]:
        """Rows and columns of an image's tokens; ValueError where the cache has images of others."""
        read = None if cache is None else cache.image_grid
        if read is not None and batch.image_grid is not None and batch.image_grid != read:
            raise ValueError(f"the cache has images of {read} tokens, found {batch.image_grid}: give them equal sides")
        return batch.image_grid or read or self._token_grid()

    def _token_grid(self, pixel_values: Tensor | None = None) -> tuple[int, int]:
        """Rows and columns of the tokens of an image, by default of a tile."""
        assert self._patches is not None, "images are for a model with a tower"
        rows, columns = self._patches.grid if pixel_values is None else self._patches.grid_of(pixel_values)
        return rows // self._patches.fold, columns // self._patches.fold

    def _recomputes(self, kind: Checkpointing) -> bool:
        return self.checkpointing == kind and self.training

    def _hidden(
        self, context: Context, batch: TokenBatch, image_features: Tensor | None, cache: Cache | None, entering: Tensor
    ) -> Tensor:
        """Final hidden states before the head; `entering` are token ids, or the previous stage's hidden states."""
        hidden = self._through_layers(context, image_features, entering)
        if cache is not None:
            cache.advance(batch.layout.num_tokens, batch.layout.num_new)
            if self._turns_by_places and context.image_mask is not None:
                cache.count_images(context.image_mask, batch.layout.valid(), self._grid_after(batch, cache))
        return hidden

    def _through_layers(self, context: Context, image_features: Tensor | None, entering: Tensor) -> Tensor:
        values: dict[str, Tensor | None] = {self._text[0].inputs[0]: entering}
        if self._vision:
            values[self._vision[-1].output] = image_features
        return self._run(self._text[:-1] if self.has_head else self._text, context, values)

    def step(self, input_ids: Tensor, context: Context) -> Tensor:
        """Logits [batch, 1, vocab] of one more token per sequence, described by `context`; caches do not advance."""
        return self._text[-1](context, self._through_layers(context, None, input_ids))

    def _logits(self, context: Context, batch: TokenBatch, hidden: Tensor, logits: Literal["all", "last"]) -> Tensor:
        head = self._text[-1]
        if logits == "last":
            return head(context, last_tokens(hidden, batch))
        return restore(head(context, hidden), batch)

    def _run(self, segments: Iterable[Segment], context: Context, values: dict[str, Tensor | None]) -> Tensor:
        """Run segments in order; `values` holds the outputs of nodes before them, the model's own input under INPUT."""
        recompute = self._recomputes("full") and torch.is_grad_enabled()
        result: Tensor | None = None
        for segment in segments:
            inputs = [values[name] for name in segment.inputs]
            for name in segment.last_use_of:
                del values[name]
            if recompute and len(segment.steps) > 1:
                result = recomputed(segment, context, *inputs)
            else:
                result = segment(context, *inputs)
            values[segment.output] = result
        assert result is not None
        return result

    def _image_mask(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        if self.image_token_id is None:
            raise ValueError("set model.image_token_id to the token whose places images take")
        mask = input_ids == self.image_token_id
        if not torch.compiler.is_compiling() and not mask.is_meta:
            num_places, num_vectors = int(mask.sum()), image_features.numel() // image_features.shape[-1]
            if num_places != num_vectors:
                raise ValueError(f"{num_vectors} image vectors for {num_places} tokens {self.image_token_id}")
        return mask


def _run_whole(module: LayerModule, inputs: Sequence[Tensor | None], context: Context) -> Tensor:
    result: Tensor = module(*inputs, context=context)
    return result


def recomputed(run: Callable[..., Any], context: Context, *inputs: Tensor | None) -> Any:
    """`run(context, *inputs)`, of which training saves the inputs alone and recomputes the rest."""
    again = partial(_first_and_again, context)
    return checkpoint(run, context, *inputs, use_reentrant=False, context_fn=again)


def _first_and_again(context: Context) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a checkpointed block: of its first run, and of its recomputation."""
    return nullcontext(), _recomputing(context)


@contextmanager
def _recomputing(context: Context) -> Iterator[None]:
    context.is_recomputed = True
    try:
        yield
    finally:
        context.is_recomputed = False


def _place(model: nn.Module, node_id: str, module: nn.Module) -> None:
    """Add a module to the tree at the path of its id, which its tensors' names begin with."""
    *groups, name = node_id.split(".")
    parent = model
    for group in groups:
        if group not in parent._modules:
            parent.add_module(group, ModuleGroup())
        parent = parent.get_submodule(group)
    parent.add_module(name, module)


def _segments(graph: LayerGraph, nodes: tuple[LayerNode, ...], modules: Mapping[str, LayerModule]) -> list[Segment]:
    """Consecutive nodes of one block together, every other node alone."""
    runs = [
        list(run)
        for _, run in groupby(nodes, key=lambda node: node.id if node.layer is None else (node.scope, node.layer))
    ]
    inputs = {node.id: graph.inputs_of(node.id) or (INPUT,) for node in nodes}
    last_reader = {name: node.id for node in nodes for name in inputs[node.id]}
    return [_segment(run, modules, inputs, last_reader) for run in runs]


def _segment(
    nodes: list[LayerNode],
    modules: Mapping[str, LayerModule],
    inputs: dict[str, tuple[str, ...]],
    last_reader: dict[str, str],
) -> Segment:
    own = {node.id for node in nodes}
    outside = tuple(dict.fromkeys(name for node in nodes for name in inputs[node.id] if name not in own))
    leaving = [node.id for node in nodes if last_reader.get(node.id) not in own]
    assert len(leaving) == 1, f"a block returns one value, found {leaving}"
    steps = tuple(
        LayerStep(
            node.id,
            modules[node.id],
            inputs[node.id],
            tuple(name for name in dict.fromkeys(inputs[node.id]) if last_reader[name] == node.id),
        )
        for node in nodes
    )
    finished = tuple(name for name in outside if last_reader[name] in own)
    return Segment(steps, outside, finished, leaving[0])


def _image_token(graph: LayerGraph) -> int | None:
    """The image token that the spec's Hugging Face config names; Llama 4's where it names none and there is room."""
    origin = graph.model.spec.huggingface
    named = image_token_of(origin.fields) if origin else None
    if named is not None:
        return named
    return PATCH_TOKEN_ID if graph.model.text.head.vocab_size > PATCH_TOKEN_ID else None


@dataclass(frozen=True, slots=True)
class _Patches:
    """Patches of a tower: a tile's `grid` of them, `fold` of which along each side become a token."""

    grid: tuple[int, int]
    fold: int
    size: int
    any_sides: bool
    class_token: Literal["first", "last", "none"]

    def grid_of(self, pixel_values: Tensor) -> tuple[int, int]:
        """Rows and columns of patches; ValueError for sides that the tower does not take."""
        height, width = pixel_values.shape[-2:]
        side, step = self.grid[0] * self.size, self.size * self.fold
        if not self.any_sides and (height, width) != (side, side):
            raise ValueError(f"expected tiles of {side} x {side}, found {height} x {width}")
        if not height or not width or height % step or width % step:
            raise ValueError(f"expected images whose sides are multiples of {step}, found {height} x {width}")
        return height // self.size, width // self.size


def _patches_of(graph: LayerGraph) -> _Patches | None:
    """Patches of the model's tower; None without one."""
    vision = graph.model.vision
    if vision is None:
        return None
    patches = vision.patch_embedding
    grid = (patches.grid, patches.grid)
    return _Patches(grid, vision.adapter.fold, patches.patch_size, vision.takes_any_grid, patches.class_token)
