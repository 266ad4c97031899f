"""One rank's part of a model, which runs on its own sequences together with the other ranks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from l4spec.graph.build import mtp_graph
from l4spec.graph.layer_graph import LayerGraph, LayerNode
from l4spec.graph.with_modules import module_place
from l4spec.layers.common.modules import Context, LayerModule
from l4spec.layers.common.parallel import Axis, all_tokens, gather
from l4spec.layers.lm_head.parallel import VocabHead
from l4spec.runtime.cache import Cache, require_cacheable
from l4spec.runtime.layout import TokenBatch, align
from l4spec.runtime.model import Model, recomputed
from l4spec.runtime.mtp import module_states
from l4spec.runtime.parallel.loss import Objective, Scored, vocab_parallel_cross_entropy
from l4spec.runtime.parallel.mesh import Mesh
from l4spec.runtime.parallel.mtp import further_targets
from l4spec.runtime.parallel.pipeline import Line
from l4spec.runtime.parallel.rank import Shard
from l4spec.runtime.parallel.tokens import TokenSplit
from l4spec.runtime.parallel.training import finish_gradients, local_region
from l4spec.runtime.sampling import Sampling, choose
from l4spec.sharding.rules import Region
from l4spec.sharding.token_split import token_use


class RankModel(Model):
    """One rank's part of a model; made by `l4spec.distribute`.

    `forward` takes this rank's own sequences (`own_rows`) and gives their logits, the same on all tensor-parallel
    ranks. All stages of a pipeline are given the same, and only the last has logits: the others return [batch, 0,
    vocab]. `nodes` are the layers of its stage, narrowed to what it computes of them; `shards` has its region of each
    tensor, `summed_gradients` the ranks over which some gradients are summed. With `sequence_parallel`, each rank of tp
    has a share of the tokens in passes with gradients.
    """

    def __init__(
        self,
        graph: LayerGraph,
        modules: dict[str, LayerModule],
        nodes: tuple[LayerNode, ...],
        mesh: Mesh,
        shards: dict[str, Shard],
        summed_gradients: dict[str, Axis],
    ) -> None:
        super().__init__(graph, modules, nodes)
        self.mesh = mesh
        self.shards = shards
        self.summed_gradients = summed_gradients
        self.sequence_parallel = False
        self.line = Line(mesh.axis("pp"))
        self._token_uses = {node.id: token_use(node) for node in nodes if node.scope == "text"}
        self._heads = [module for module in modules.values() if isinstance(module, VocabHead)]

    def own_rows(self, batch: Tensor) -> Tensor:
        """The sequences that this rank runs, of a batch [sequences, ...] that all ranks have.

        Raises ValueError if they cannot be divided equally among the dp x ep ranks.
        """
        data = self.mesh.data
        if batch.shape[0] % data.size:
            raise ValueError(f"{batch.shape[0]} sequences cannot be divided among {data.size} ranks (dp x ep)")
        return batch.chunk(data.size)[data.index]

    def choose_next(self, logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
        """The next token of every sequence, the same on all ranks: a draw sees all logits, as on one process.

        The last stage chooses; only ids travel to the others.
        """
        data, last = self.mesh.data, logits[:, -1:].flatten(0, 1)
        if not self.line.is_last:
            chosen = torch.empty(data.size * logits.shape[0], dtype=torch.long, device=logits.device)
        elif sampling.temperature == 0:
            chosen = gather(choose(last, sampling, generator), data).flatten()
        else:
            chosen = choose(gather(last, data).flatten(0, 1), sampling, generator)
        return self.line.from_last(chosen)

    def reads_ahead(self) -> AbstractContextManager[None]:
        """A stage reads the next piece of a prompt while those after it read earlier ones."""
        return self.line.runs_ahead()

    def new_cache(self, batch: int, max_len: int, dtype: torch.dtype | None = None) -> Cache:
        """Caches of this stage's layers, as `Model.new_cache`; refused on all stages where one cannot have any."""
        require_cacheable(self.graph.nodes)
        return super().new_cache(batch, max_len, dtype)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """As `Model.encode_images` on the first stage; the others, which do not use image vectors, get zeros.

        No tiles give no vectors, yet pass through the tower: data-parallel ranks gather its weights together.
        """
        if not self.line.is_first and self.num_tokens_per_tile:
            rows, columns = self._token_grid(pixel_values)
            shape = (pixel_values.shape[0], rows * columns, self._vector_width)
            return torch.zeros((), dtype=self.dtype, device=self.device).expand(shape)
        if len(pixel_values):
            return super().encode_images(pixel_values)
        return super().encode_images(pixel_values.new_zeros(1, *pixel_values.shape[1:]))[:0]

    def run_stage(self, input_ids: Tensor, hidden: Tensor | None = None, **inputs: Any) -> Tensor:
        """This stage alone: from the hidden states of the one before (None on the first) to its own, or to logits.

        `inputs` are those of `forward` without a cache. Nothing is sent; gradients flow.
        """
        context, batch, hidden = self._stage(input_ids, hidden, inputs)
        return self._logits(context, batch, hidden, "all") if self.has_head else hidden

    def _stage(
        self, input_ids: Tensor, hidden: Tensor | None, inputs: dict[str, Any]
    ) -> tuple[Context, TokenBatch, Tensor]:
        """A pass through this stage's layers except the head: its context, the aligned ids, and the hidden states."""
        images, pixel_values = inputs.pop("image_features", None), inputs.pop("pixel_values", None)
        if pixel_values is not None:
            images = self.encode_images(pixel_values)
        batch = align(input_ids, inputs.pop("attention_mask", None), inputs.pop("sequence_ids", None), None)
        assert not inputs, f"unknown inputs {sorted(inputs)}"
        context = self._context(batch, images, None)
        return context, batch, self._hidden(context, batch, images, None, batch.input_ids if hidden is None else hidden)

    def run_with_modules(
        self,
        input_ids: Tensor,
        score: Callable[[int, Tensor], Tensor],
        *,
        weight: float = 1.0,
        sequence_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Scores of logits, of the model and each of its modules: `score(depth, logits)`, the model's depth is 0.

        The module of multi-token prediction of depth k (from 1) reads the tokens k places further (`further_targets`);
        `weight` is that of its loss, and so of its mixture's balancing loss. Logits [batch, tokens, ...] of a depth are
        dropped before the next one runs. Gradients flow into all of them. For one stage, whose tokens are not divided.
        """
        context, batch, hidden = self._stage(input_ids, None, {"sequence_ids": sequence_ids})
        graph = mtp_graph(self.graph)
        assert graph is not None, "the graph has modules"
        scores = [score(0, self._logits(context, batch, hidden, "all"))]
        for index in range(self.num_modules):
            ids, _ = further_targets(input_ids, input_ids, None, index + 1)
            own = replace(context, loss_scale=context.loss_scale * weight / self.num_modules, token_ids=ids)
            normed, hidden = self._module_states(graph, index, own, ids, hidden)
            scores.append(score(index + 1, self._logits(own, batch, normed, "all")))
        return tuple(scores)

    def _module_states(
        self, graph: LayerGraph, index: int, context: Context, ids: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `module_states`, of the module `index`."""

        def layer(node_id: str) -> LayerModule:
            module = self.get_submodule(module_place(index, node_id))
            assert isinstance(module, LayerModule)
            return module

        def run(context: Context, embedded: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
            return module_states(graph, layer, embedded, hidden, context)

        embedded = self.get_submodule("text.embedding")(ids, context=context)
        if self._recomputes("full") and torch.is_grad_enabled():
            states: tuple[Tensor, Tensor] = recomputed(run, context, embedded, hidden)
            return states
        return run(context, embedded, hidden)

    @property
    def num_modules(self) -> int:
        """Modules of multi-token prediction that this rank trains; 0 in a graph without them."""
        return 1 + max((node.module for node in self.module_nodes if node.module is not None), default=-1)

    def _context(self, batch: TokenBatch, image_features: Tensor | None, cache: Cache | None) -> Context:
        context = super()._context(batch, image_features, cache)
        if self.sequence_parallel and cache is None and torch.is_grad_enabled():
            tp, num_tokens = self.mesh.axis("tp"), batch.layout.num_tokens
            if num_tokens % tp.size:
                raise ValueError(f"{num_tokens} tokens cannot be divided among {tp.size} ranks (sequence parallelism)")
            context.split = TokenSplit(tp, self._token_uses, self.checkpointing)
        return context

    def _logits(self, context: Context, batch: TokenBatch, hidden: Tensor, logits: Literal["all", "last"]) -> Tensor:
        if context.split is None or logits == "all":
            return super()._logits(context, batch, hidden, logits)
        hidden = all_tokens(hidden, self.mesh.axis("tp"))
        return super()._logits(replace(context, split=None), batch, hidden, logits)

    def _forward(
        self, batch: TokenBatch, image_features: Tensor | None, cache: Cache | None, logits: Literal["all", "last"]
    ) -> Tensor:
        if self.line.pp.size == 1:
            return super()._forward(batch, image_features, cache, logits)
        with torch.no_grad():  # gradients cross stages in `train_step` alone
            return self._through_line(batch, image_features, cache, logits)

    def _through_line(
        self, batch: TokenBatch, image_features: Tensor | None, cache: Cache | None, logits: Literal["all", "last"]
    ) -> Tensor:
        context, entering = self._context(batch, image_features, cache), batch.input_ids
        if not self.line.is_first:
            entering = self.line.receive((*entering.shape, self.stream_width), self.dtype, self.device)
        hidden = self._hidden(context, batch, image_features, cache, entering)
        if self.line.is_last:
            return self._logits(context, batch, hidden, logits)
        self.line.send(hidden)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return hidden.new_empty(hidden.shape[0], 0, self.graph.model.text.head.vocab_size, dtype=wide)

    def finish_backward(self) -> None:
        """Sum partial gradients over tensor-parallel ranks, and average gradients over data-parallel ranks.

        To be called after every backward pass whose gradients are used, on all ranks.
        """
        finish_gradients(self.named_parameters(), self.summed_gradients, self.mesh.data.size)

    def local_region(self, name: str) -> Region:
        """This rank's region of the whole tensor of this name; with FSDP2, its share of the first dim."""
        return local_region(self.get_tensor(name), self.shards[name].region)

    def get_tensor(self, name: str) -> Tensor:
        """A parameter or buffer by its name."""
        owner, _, leaf = name.rpartition(".")
        tensor: Tensor = getattr(self.get_submodule(owner), leaf)
        return tensor

    @property
    def _vector_width(self) -> int:
        """Numbers that an image token brings: for its embedding, and for each block that it enters."""
        vision = self.graph.model.vision
        return self.graph.hidden_size * (1 if vision is None else vision.num_vectors)

    @property
    def stream_width(self) -> int:
        """Width of the hidden states passed between stages."""
        return self.graph.stream_width

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        *,
        hidden: Tensor | None = None,
        count: Tensor | None = None,
        objective: Objective | None = None,
        extras: Mapping[str, Tensor] | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Mean cross entropy of this rank's sequences; `labels` [batch, tokens] follow each token, -100 counts not.

        Logits stay divided along the vocabulary. `inputs` are those of `forward`. `count` replaces the number of labels
        that the sum is divided by. An `objective`, called with the `extras` of these sequences, replaces cross entropy.
        In a pipeline every stage gets the value without a gradient, which `train_step` makes: it gives the last stage
        the `hidden` states of the one before. If data-parallel ranks share a tower's weights (FSDP2), either all or
        none must be given `pixel_values`, with zero tiles on ranks without images.
        """
        in_line = self.line.pp.size > 1 and hidden is None
        with self._divided_logits():
            logits = self(input_ids, **inputs) if in_line else self.run_stage(input_ids, hidden, **inputs)
        given = {} if extras is None else extras
        loss = self._loss_of(logits, labels, count, objective, given) if self.line.is_last else logits.new_zeros(())
        return self.line.from_last(loss) if in_line else loss

    def losses_with_modules(
        self,
        input_ids: Tensor,
        labels: Tensor,
        *,
        weight: float,
        counts: Tensor,
        sequence_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss of `loss`, and those of the modules [modules], without their weight (see `run_with_modules`).

        `counts` [1 + modules] replace the numbers of labels that the sums are divided by.
        """

        def loss(depth: int, logits: Tensor) -> Tensor:
            targets = further_targets(input_ids, labels, sequence_ids, depth)[1] if depth else labels
            return self._loss_of(logits, targets, counts[depth], None, {})

        with self._divided_logits():
            own, *further = self.run_with_modules(input_ids, loss, weight=weight, sequence_ids=sequence_ids)
        return own, torch.stack(further)

    def _loss_of(
        self,
        logits: Tensor,
        labels: Tensor,
        count: Tensor | None,
        objective: Objective | None,
        extras: Mapping[str, Tensor],
    ) -> Tensor:
        tp = self.mesh.axis("tp") if self._heads else Axis()
        own_ids = self._heads[0].own_ids if self._heads else range(logits.shape[-1])
        if objective is not None:
            sizes = tuple(self._heads[0].sizes) if self._heads else (logits.shape[-1],)
            return objective(Scored(logits, labels, own_ids, tp, sizes, extras)) * self.mesh.data.size
        return vocab_parallel_cross_entropy(logits, labels, own_ids, tp, count)

    @contextmanager
    def _divided_logits(self) -> Iterator[None]:
        for head in self._heads:
            head.gathers = False
        try:
            yield
        finally:
            for head in self._heads:
                head.gathers = True
