"""Generation: prefill in chunks, then token by token, in memory allocated before the first token.

model.generate(input_ids, max_new_tokens=64) prompts and their continuations for tokens in model.stream(input_ids,
max_new_tokens=64): the same, a token of each sequence at a time
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Required, TypedDict, Unpack, overload

import torch
from torch import Tensor

from l4spec.errors import UserError
from l4spec.graph.layer_graph import LayerGraph
from l4spec.runtime.cache import Cache
from l4spec.runtime.sampling import Sampling

DEFAULT_PREFILL_CHUNK = 2048
"""Tokens per step of a prefill, which bound the activations for prompts of any length."""
Prompt = Tensor | Sequence[Sequence[int]]


class Generates(Protocol):
    """Interface that generation needs: a whole model, or one rank's part that runs the sequences in `own_rows`."""

    graph: LayerGraph
    image_token_id: int | None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def num_tokens_per_tile(self) -> int:
        """Text positions that an image tile takes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Logits; see `Model.forward`."""

    def new_cache(self, batch: int, max_len: int) -> Cache:
        """Empty KV caches for `batch` sequences of at most `max_len` tokens."""

    def own_rows(self, batch: Tensor) -> Tensor:
        """The rows of a batch that this process runs."""

    def choose_next(self, logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> Tensor:
        """The next token of every sequence of the batch."""

    def reads_ahead(self) -> AbstractContextManager[None]:
        """Context manager around the passes of a chunked prefill."""

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Image vectors [tiles, tokens per tile, hidden]."""


class DecodeStep(Protocol):
    """A faster decode step of one model, as `l4spec.compile_step` makes it."""

    @property
    def model(self) -> Generates:
        """The model of the step."""

    def __call__(self, input_ids: Tensor, *, cache: Cache) -> Tensor:
        """Logits [batch, 1, vocab] after `input_ids` [batch, 1]."""


class OptionFields(TypedDict, total=False):
    """The arguments of `generate` after the prompts; see `GenerationOptions`."""

    max_new_tokens: Required[int]
    temperature: float
    top_k: int | None
    top_p: float | None
    stop_ids: Sequence[int]
    seed: int | None
    prefill_chunk: int
    pad_id: int


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Settings of generation. Raises UserError for values out of range."""

    max_new_tokens: int
    """Most new tokens per sequence."""
    temperature: float = 0.0
    """0 takes the most likely token; see `Sampling`."""
    top_k: int | None = None
    """See `Sampling`."""
    top_p: float | None = None
    """See `Sampling`."""
    stop_ids: Sequence[int] = ()
    """Stop tokens: each ends its sequence and is part of it."""
    seed: int | None = None
    """Seed of the draws; None uses torch's default generator."""
    prefill_chunk: int = DEFAULT_PREFILL_CHUNK
    """Tokens of a prompt per prefill step."""
    pad_id: int = 0
    """Padding id after a sequence that ended before the others of its batch."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UserError(f"seed: expected 0 to 2**63 - 1, found {self.seed}")
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """Sampling settings."""
        return Sampling(self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True, slots=True)
class _Padded:
    """Prompts [batch, tokens] aligned at their ends, `mask` 0 before their first token; None: all equally long."""

    ids: Tensor
    mask: Tensor | None


@overload
def generate(
    model: Generates,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    step: DecodeStep | None = None,
    **options: Unpack[OptionFields],
) -> Tensor: ...


@overload
def generate(
    model: Generates,
    input_ids: Sequence[Sequence[int]],
    *,
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    step: DecodeStep | None = None,
    **options: Unpack[OptionFields],
) -> list[list[int]]: ...


def generate(
    model: Generates,
    input_ids: Prompt,
    *,
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    step: DecodeStep | None = None,
    **options: Unpack[OptionFields],
) -> Tensor | list[list[int]]:
    """Prompts with their generated continuation.

    A tensor [batch, tokens], padded on the left where `attention_mask` is 0, gives one [batch, tokens + new], with
    `pad_id` after a sequence that stopped before the others. Lists of ids, of any lengths, give lists, each ending with
    its own last token. `step`, from `l4spec.compile_step(model)`, runs the decode steps faster. Raises UserError for an
    empty prompt or an id outside the vocabulary, ValueError for a step of another model.
    """
    given = {"attention_mask": attention_mask, "pixel_values": pixel_values}
    steps = stream(model, input_ids, **given, step=step, **options)
    new = torch.stack(tuple(steps), dim=1)
    if isinstance(input_ids, Tensor):
        return torch.cat((input_ids.to(new.device), new), dim=1)
    stop_ids, rows = options.get("stop_ids", ()), new.tolist()
    return [[*prompt, *_until_stop(row, stop_ids)] for prompt, row in zip(input_ids, rows, strict=True)]


def stream(
    model: Generates,
    input_ids: Prompt,
    *,
    attention_mask: Tensor | None = None,
    pixel_values: Tensor | None = None,
    step: DecodeStep | None = None,
    **options: Unpack[OptionFields],
) -> Iterator[Tensor]:
    """The next token of each sequence [batch], until every sequence stops or max_new_tokens is reached.

    Prompts are checked before the first token is generated.
    """
    settings = GenerationOptions(**options)
    prompts = _padded(model, input_ids, attention_mask, settings.pad_id)
    if step is not None and step.model is not model:
        raise ValueError("expected a compiled step of this model, found one of another")
    return _steps(model, prompts, settings, pixel_values, step or partial(model, logits="last"))


def _steps(
    model: Generates,
    prompts: _Padded,
    options: GenerationOptions,
    pixel_values: Tensor | None,
    read: Callable[..., Tensor],
) -> Iterator[Tensor]:
    """Tokens of all sequences, of which this process runs those that `model.own_rows` gives it.

    The model reads the prompts, `read` every further token.
    """
    batch, num_tokens = prompts.ids.shape
    generator = None
    if options.seed is not None:
        generator = torch.Generator(prompts.ids.device).manual_seed(options.seed)
    stop_ids = torch.tensor(list(options.stop_ids), dtype=torch.long, device=prompts.ids.device)
    finished = torch.zeros(batch, dtype=torch.bool, device=prompts.ids.device)
    cache = model.new_cache(len(model.own_rows(prompts.ids)), num_tokens + options.max_new_tokens - 1)
    logits = _prefill(model, prompts, cache, options.prefill_chunk, pixel_values)
    for step in range(options.max_new_tokens):
        tokens = model.choose_next(logits, options.sampling, generator).masked_fill(finished, options.pad_id)
        yield tokens
        if options.stop_ids:
            finished = finished | torch.isin(tokens, stop_ids)
            if bool(finished.all()):
                return
        if step + 1 < options.max_new_tokens:
            logits = read(model.own_rows(tokens)[:, None], cache=cache)


def _prefill(model: Generates, prompts: _Padded, cache: Cache, chunk: int, pixel_values: Tensor | None) -> Tensor:
    """Read the prompts chunk by chunk into the cache; logits [batch, 1, vocab] after their last tokens."""
    places, vectors = _image_places(model, prompts.ids, pixel_values)
    ids = model.own_rows(prompts.ids)
    mask = None if prompts.mask is None else model.own_rows(prompts.mask)
    logits: Tensor | None = None
    with model.reads_ahead():
        for start in range(0, ids.shape[1], chunk):
            columns = slice(start, start + chunk)
            here = None if places is None else places[:, columns]
            image_features = None if here is None or vectors is None else vectors[here[here >= 0]]
            logits = model(
                ids[:, columns],
                attention_mask=None if mask is None else mask[:, columns],
                image_features=None if image_features is None or not len(image_features) else image_features,
                cache=cache,
                logits="last",
            )
    assert logits is not None
    return logits


def _image_places(model: Generates, ids: Tensor, pixel_values: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Index of the image vector that replaces each token [own rows, tokens], -1 for none; the vectors [places, hidden].

    Tiles of other processes' rows are not encoded here.
    """
    if pixel_values is None:
        return None, None
    mask = ids == (-1 if model.image_token_id is None else model.image_token_id)
    num_tiles, per_tile = pixel_values.shape[0], model.num_tokens_per_tile
    if int(mask.sum()) != num_tiles * per_tile:
        raise UserError(f"{num_tiles * per_tile} image vectors for {int(mask.sum())} tokens {model.image_token_id}")
    places = model.own_rows(torch.where(mask, mask.flatten().cumsum(0).view_as(mask) - 1, -1))
    own_places = places[places >= 0]
    if not len(own_places):
        return None, None
    first, last = int(own_places.min()) // per_tile, int(own_places.max()) // per_tile
    with torch.no_grad():
        vectors = model.encode_images(pixel_values[first : last + 1]).flatten(0, -2)
    return torch.where(places >= 0, places - first * per_tile, -1), vectors


def _padded(model: Generates, prompts: Prompt, attention_mask: Tensor | None, pad_id: int) -> _Padded:
    """Prompts on the model's device, aligned at their ends. Raises UserError for prompts that the model cannot read."""
    if isinstance(prompts, Tensor):
        if prompts.dim() != 2 or not prompts.numel():
            raise UserError(f"expected prompts [batch, tokens] with at least one token, found {list(prompts.shape)}")
        ids, mask = prompts, attention_mask
        if mask is not None:
            _require_left_padding(mask, prompts)
    else:
        ids, mask = _rows(prompts, pad_id)
    real_ids = ids if mask is None else ids[mask.bool()]
    vocab_size = model.graph.model.text.embedding.vocab_size
    wrong = real_ids[(real_ids < 0) | (real_ids >= vocab_size)]
    if len(wrong):
        raise UserError(f"expected token ids from 0 to {vocab_size - 1}, found {int(wrong[0])}")
    return _Padded(ids.to(model.device), None if mask is None else mask.to(model.device))


def _require_left_padding(mask: Tensor, prompts: Tensor) -> None:
    if mask.shape != prompts.shape:
        raise UserError(f"attention_mask {list(mask.shape)} must be shaped as the prompts {list(prompts.shape)}")
    if not bool((mask.int().diff(dim=1) >= 0).all()) or not bool(mask[:, -1].all()):
        raise UserError("prompts must be padded on the left: attention_mask is 0 only before a row's first token")


def _rows(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor | None]:
    """Lists of ids as one tensor, filled with `pad_id` on the left."""
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or not min(lengths):
        raise UserError("expected at least one prompt, each of at least one token")
    longest = max(lengths)
    ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    if min(lengths) == longest:
        return ids, None
    return ids, torch.tensor([[0] * (longest - length) + [1] * length for length in lengths])


def _until_stop(tokens: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """Tokens up to and including the first stop id."""
    end = next((index + 1 for index, token in enumerate(tokens) if token in stop_ids), len(tokens))
    return list(tokens[:end])
