"""Compiled decode steps: the work between two tokens as a few native loops instead of hundreds of operations.

step = l4spec.compile_step(model)
model.generate(input_ids, max_new_tokens=64, step=step)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from l4spec.errors import UserError
from l4spec.layers.attention.traced import DeferredCache, attending
from l4spec.layers.common.cache import Attend, LayerCache
from l4spec.layers.common.modules import Context, TokenLayout
from l4spec.layers.learned_position.module import require_places
from l4spec.runtime.cache import Cache, require_cacheable
from l4spec.runtime.layout import align
from l4spec.runtime.model import Model

_Compiled = Callable[[Tensor, Tensor], Tensor]


class CompiledStep:
    """Compiled step of one token per sequence: `step(ids, cache=cache)` equals `model(ids, cache=cache)`.

    The first call for a batch size compiles, which takes some seconds per layer and a C++ compiler; later calls do not,
    at any cache position. Inference only. In-place changes of weights take effect, and a model that is moved or
    converted is compiled again; a model whose parameters are replaced needs a new step.
    """

    def __init__(self, model: Model, backend: str | Callable[..., Any] = "inductor") -> None:
        """`backend` is one of torch's compilers.

        Raises UserError for a model that cannot be compiled: packed, or divided among ranks.
        """
        if type(model) is not Model or not model.has_head:
            raise UserError("expected a whole model on one device to compile, found one that ranks divide")
        _require_plain(model)
        _require_no_states(model)
        require_cacheable(model.nodes)
        self.model, self.backend = model, backend
        self._compiled: dict[tuple[int, torch.dtype, torch.device], _Compiled] = {}
        self._attentions: dict[str, Attend] = {}

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, *, cache: Cache) -> Tensor:
        """Logits in fp32 [batch, 1, vocab] for `input_ids` [batch, 1], which follow the tokens in `cache`.

        Raises ValueError for more than one token per sequence, for a cache that does not fit and for positions beyond
        the learned ones, UserError if compilation is not possible.
        """
        if input_ids.dim() != 2 or input_ids.shape[1] != 1:
            raise ValueError(f"a step reads one token of each sequence, found {list(input_ids.shape)}")
        if cache.image_tokens is not None:
            raise UserError("a compiled step turns by positions, and after an image text continues at another place")
        layout = align(input_ids, None, None, cache).layout
        if (learned := self.model.graph.model.text.position) is not None:
            require_places(layout.start + 1, learned.num_positions)  # the traced step does not know its place
        _require_plain(self.model)
        positions = layout.positions.expand(len(input_ids), 1).clone()
        key = len(input_ids), self.model.dtype, self.model.device
        with attending(self._attentions, Context(layout, cache.layers)):
            if key not in self._compiled:
                self._compiled[key] = self._compile(input_ids, positions)
            logits = self._compiled[key](input_ids, positions)
        cache.advance(1, None)
        return logits

    def prepare(self, batch: int = 1) -> None:
        """Compile for `batch` sequences now, so that no later call takes longer. Raises UserError as a call does."""
        self(torch.zeros(batch, 1, dtype=torch.long, device=self.model.device), cache=self.model.new_cache(batch, 1))

    def _compile(self, input_ids: Tensor, positions: Tensor) -> "_Compiled":
        """Trace the step without cached rows, then compile and run it once, so that failures occur in one place."""
        traced = torch.export.export(_Step(self.model, self._attentions), (input_ids, positions), strict=False)
        self._require_deferred()
        # what guards would look after does not change: a traced step has constants and weights, and one key
        options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        compiled: _Compiled = torch.compile(
            traced.module(), fullgraph=True, dynamic=False, backend=self.backend, options=options
        )
        try:
            compiled(input_ids, positions)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"the step could not be compiled: {reason}", hint="it needs a C++ compiler") from error
        return compiled

    def _require_deferred(self) -> None:
        for node in self.model.nodes:
            if node.scope == "text" and node.declaration.cache and node.id not in self._attentions:
                raise UserError(f"{node.id} keeps its cache itself, which a compiled step cannot see")


def _require_plain(model: Model) -> None:
    if model.quantization is not None:
        raise UserError("a compiled step reads weights as they were built, and these are packed")


def _require_no_states(model: Model) -> None:
    for node in model.nodes:
        if any(entry.bound.is_state for entry in node.declaration.cache):
            raise UserError(
                f"{node.id} keeps a state, which a compiled step cannot carry yet: decode without compiling"
            )
        if len({entry.bound for entry in node.declaration.cache}) > 1:
            raise UserError(f"{node.id} keeps entries by several laws, which a compiled step cannot: do not compile")


def compile_step(model: Model) -> CompiledStep:
    """A decode step of this model that is compiled on its first call; see `CompiledStep`."""
    return CompiledStep(model)


class _Step(nn.Module):
    """The step as a tracer sees it: token ids and positions, both [batch, 1], to logits.

    Rows count as different, as those of a later call may be, so no layer takes the `start` of this one for its own.
    """

    def __init__(self, model: Model, attentions: dict[str, Attend]) -> None:
        super().__init__()
        self.model = model
        self.caches: dict[str, LayerCache] = {
            node.id: DeferredCache(node_id=node.id, attentions=attentions)
            for node in model.nodes
            if node.declaration.cache
        }

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        longest = self.model.graph.model.text.stack.width.max_seq_len
        layout = TokenLayout(len(input_ids), 1, longest - 1, positions, lengths=positions[:, 0])
        return self.model.step(input_ids, Context(layout, self.caches, token_ids=input_ids))
