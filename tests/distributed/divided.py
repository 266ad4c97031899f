"""What ranks do with sequences whose tokens are divided among them: run in the processes of `world.py`."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l4spec.runtime.build import build
from l4spec.runtime.measure.traffic import Ledger, counting_traffic
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.sequence import PrefillModel
from l4spec.sharding.layout import Layout, MeshCoordinate
from tests.distributed.whole import graph_from
from tests.runtime.tiny import randomised, token_ids


class Prefill(NamedTuple):
    """`batch` sequences of `tokens` tokens of a model, divided as `layout` says, with places for `tiles` images."""

    text: str
    layout: Layout
    tokens: int
    batch: int = 2
    dtype: str = "fp32"
    tiles: int = 0


class RankResult(NamedTuple):
    """What one rank gave: where it stands, logits of its tokens and of the last one, its cache, what it sent."""

    place: MeshCoordinate
    logits: Tensor
    last: Tensor
    cache_bytes: int
    sent: Ledger


@lru_cache(maxsize=4)
def whole(text: str, dtype: str) -> Model:
    """A model of random weights; one with vision takes token 7 for an image's places."""
    model = randomised(graph_from(text), dtype=dtype)
    model.image_token_id = 7
    return model


def inputs(case: Prefill) -> tuple[Tensor, dict[str, Tensor]]:
    """Token ids, and image vectors where the case has tiles: their places lie across the ranks' tokens."""
    model = whole(case.text, case.dtype)
    ids = token_ids(case.batch, case.tokens, model.graph.model.text.head.vocab_size, seed=case.tokens)
    if not case.tiles:
        return ids, {}
    ids = ids.where(ids != 7, 8)
    places = torch.linspace(0, ids.numel() - 1, case.tiles * model.num_tokens_per_tile).long()
    ids.view(-1)[places] = 7
    vision = model.graph.model.vision
    assert vision is not None
    size = vision.patch_embedding.image_size
    pixels = torch.randn(case.tiles, 3, size, size, generator=torch.Generator().manual_seed(3))
    return ids, {"image_features": model.encode_images(pixels)}


@torch.no_grad()
def one_process(case: Prefill) -> Tensor:
    """Logits of all tokens."""
    ids, images = inputs(case)
    logits: Tensor = whole(case.text, case.dtype)(ids, **images)
    return logits


def prefills(rank: int, cases: list[Prefill]) -> list[RankResult]:
    """All cases, one after the other, on one rank."""
    return [_prefill(case) for case in cases]


@torch.no_grad()
def _prefill(case: Prefill) -> RankResult:
    model = distribute(whole(case.text, case.dtype), case.layout)
    assert isinstance(model, PrefillModel)
    model.image_token_id = 7
    ids, images = inputs(case)
    rows = model.own_rows(ids)
    cp = model.mesh.axis("cp").group
    assert cp is not None
    with counting_traffic({"cp": cp}) as sent:
        logits = model(rows, **images)
    cache = model.new_cache(rows.shape[0], case.tokens)
    last = model(rows, **images, cache=cache, logits="last")
    return RankResult(model.mesh.place, logits, last, cache.num_bytes, sent)


@torch.no_grad()
def continued(rank: int, case: Prefill, decoding: Layout | None, new: Tensor) -> tuple[MeshCoordinate, Tensor]:
    """Logits of `new` tokens [batch, tokens], one at a time after a divided prefill, with its caches joined.

    By one process (which every rank is), or by the layout `decoding` of the same ranks.
    """
    model = distribute(whole(case.text, case.dtype), case.layout)
    assert isinstance(model, PrefillModel)
    ids, _ = inputs(case)
    cache = model.new_cache(case.batch, case.tokens + 3)
    model(ids, cache=cache, logits="last")
    joined = model.whole_cache(cache, case.tokens + new.shape[1])
    after: Model = whole(case.text, case.dtype)
    if decoding is not None:
        after = distribute(after, decoding)
    return model.mesh.place, torch.cat([after(token[:, None], cache=joined) for token in new.unbind(1)], dim=1)


def refused(rank: int, text: str, layout: Layout) -> dict[str, str]:
    """What a rank says to whoever asks for more than a prefill."""
    model = distribute(build(graph_from(text), "meta"), layout)
    ids = token_ids(1, 64, 50)
    cache = model.new_cache(1, 64)
    model(ids[:, :40], cache=cache)
    padded = torch.ones_like(ids)
    padded[:, :3] = 0
    asked: dict[str, Any] = {
        "short": lambda: model(ids[:, :16]),
        "decode": lambda: model(ids[:, :1], cache=cache),
        "padded": lambda: model(ids, attention_mask=padded),
        "packed": lambda: model(ids, sequence_ids=ids),
        "train": model.train,
        "loss": lambda: model.loss(ids, ids),
        "generate": lambda: model.generate([[1] * 40], max_new_tokens=2),
    }
    return {name: _message(ask) for name, ask in asked.items()}


def _message(ask: Any) -> str:
    try:
        ask()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
