"""What any model does under any layout and in one process: prefill, decode, generation and a training step."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l4spec.layers.common.parallel import Axis
from l4spec.runtime.measure.traffic import Ledger, counting_traffic
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.step import train_step
from l4spec.runtime.parallel.training import local_of
from l4spec.sharding.layout import Layout, MeshCoordinate
from l4spec.sharding.rules import Region
from tests.distributed.whole import graph_from
from tests.runtime.tiny import randomised, token_ids

IMAGE = 0
"""The token whose places images take."""


class Case(NamedTuple):
    """`sequences` of `tokens` tokens under a layout, the last `new` of them one at a time; `tiles` of each sequence."""

    text: str
    layout: Layout
    sequences: int
    tokens: int
    new: int
    tiles: tuple[int, ...] = ()
    microbatches: int = 1

    @property
    def data_ranks(self) -> int:
        """Ranks among which the sequences are divided."""
        return self.layout.dp * self.layout.ep


class RankResult(NamedTuple):
    """What one rank, or one process, gave. Gradients are by name, with the region of the whole that they are of."""

    place: MeshCoordinate
    prefill: Tensor
    decode: Tensor | None
    generated: list[list[int]] | None
    loss: float
    gradients: dict[str, tuple[Region, Tensor]]
    param_bytes: int
    cache_bytes: int
    sent: dict[str, Ledger]


def whole_model(case: Case, dtype: str = "fp64") -> Model:
    """Every weight random, of one seed in any format."""
    model = randomised(graph_from(case.text), dtype=dtype)
    model.image_token_id = IMAGE
    return model


@lru_cache(maxsize=2)
def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, labels of which some count for nothing, and the tiles of all sequences in order."""
    graph = graph_from(case.text)
    ids = token_ids(case.sequences, case.tokens, graph.model.text.head.vocab_size, seed=case.tokens)
    vision = graph.model.vision
    tiles = None
    if vision is not None:
        ids = ids.clamp(min=1)
        for row, count in zip(ids, case.tiles, strict=True):
            row[: count * vision.num_tokens_per_tile] = IMAGE
        size, channels = vision.patch_embedding.image_size, vision.patch_embedding.num_channels
        tiles = torch.randn(sum(case.tiles), channels, size, size, generator=torch.Generator().manual_seed(3)).double()
    labels = ids.roll(-1, 1)
    labels = labels.where(torch.arange(labels.numel()).view_as(labels) % 5 != 3, IGNORED)
    return ids, labels, tiles


def one_process(case: Case, dtype: str = "fp64", *, nudged: bool = False) -> RankResult:
    """The whole of it; `nudged` with weights that differ by one rounding of fp64."""
    model = whole_model(case, dtype)
    if nudged:
        _nudge(model)
    ids, labels, tiles = inputs(case)
    prefill, decode, generated, cache_bytes = _served(model, case, ids, tiles, {})
    loss = _loss_of_parts(model.train(), case, ids, labels, tiles)
    gradients = {
        name: (tuple(map(range, p.shape)), p.grad) for name, p in model.named_parameters() if p.grad is not None
    }
    return RankResult(MeshCoordinate(0, 0, 0, 0, 0), prefill, decode, generated, loss, gradients, 0, cache_bytes, {})


def _nudge(model: Model) -> None:
    """Change every weight by at most a unit roundoff of fp64, up or down at random."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 2.0**-52 * torch.randint(-1, 2, weight.shape, generator=generator).to(weight.dtype))


def _loss_of_parts(model: Model, case: Case, ids: Tensor, labels: Tensor, tiles: Tensor | None) -> float:
    """Part by part as microbatches run, since a mixture's capacity counts within one: each data rank's first and so on.

    Gradients are left in the model. A loss that layers add themselves is a mean over the parts (`Context.loss_scale`).
    """
    number, total = labels.ne(IGNORED).sum().clamp(min=1), 0.0
    model.loss_scale = 1 / case.microbatches
    rows = torch.arange(case.sequences).view(case.data_ranks, case.microbatches, -1)
    for part in rows.unbind(1):
        own = part.flatten()
        logits = model(ids[own], pixel_values=_tiles_of(case, own, tiles))
        flat = logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(flat, labels[own].flatten(), reduction="sum") / number
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return total


def _tiles_of(case: Case, rows: Tensor, tiles: Tensor | None) -> Tensor | None:
    """The tiles of some sequences; None where they have none, or the model does not see."""
    if tiles is None:
        return None
    parts = torch.split(tiles, list(case.tiles))
    rows_of_tiles = torch.cat([parts[row] for row in rows.tolist()])
    return rows_of_tiles if len(rows_of_tiles) else None


def _served(
    model: Model, case: Case, ids: Tensor, tiles: Tensor | None, sent: dict[str, Ledger]
) -> tuple[Tensor, Tensor | None, list[list[int]] | None, int]:
    """Logits of the whole, logits of the last tokens one by one, what is said after, and bytes of caches."""
    own = model.own_rows(torch.arange(case.sequences))
    given = _tiles_of(case, own, tiles)
    mine, groups = ids[own], groups_of(model)
    with torch.no_grad():
        images = None if given is None else model.encode_images(given)
        with counting_traffic(groups) as sent["prefill"]:
            prefill = model(mine, image_features=images)
    if not model.graph.can_cache:
        return prefill, None, None, 0
    cache = model.new_cache(len(mine), case.tokens)
    known = case.tokens - case.new
    model(mine[:, :known], image_features=images, cache=cache, logits="last")
    with counting_traffic(groups) as sent["decode"]:
        steps = [model(token[:, None], cache=cache) for token in mine[:, known:].unbind(1)]
    generated = model.generate(ids, pixel_values=tiles if sum(case.tiles) else None, max_new_tokens=3).tolist()
    return prefill, torch.cat(steps, dim=1), generated, cache.num_bytes


def on_rank(rank: int, case: Case) -> RankResult:
    """The same on one rank of the layout."""
    whole = whole_model(case)
    ids, labels, tiles = inputs(case)
    sent: dict[str, Ledger] = {}
    model = distribute(whole, case.layout)
    prefill, decode, generated, cache_bytes = _served(model, case, ids, tiles, sent)
    param_bytes = sum(tensor.nbytes for tensor in model.state_dict(keep_vars=True).values())
    model = distribute(whole, case.layout, train=True)
    own = model.own_rows(torch.arange(case.sequences))
    mine = _tiles_of(case, own, tiles)
    given: dict[str, Any] = {} if mine is None else {"pixel_values": mine}
    for _ in range(2):  # the first step also makes torch's stages known to each other
        with counting_traffic(groups_of(model)) as sent["train"]:
            loss = train_step(model, ids[own], labels[own], num_microbatches=case.microbatches, **given)
    gradients = {
        name: (model.local_region(name), local_of(p.grad)) for name, p in model.named_parameters() if p.grad is not None
    }
    return RankResult(
        model.mesh.place, prefill, decode, generated, float(loss), gradients, param_bytes, cache_bytes, sent
    )


def groups_of(model: Model) -> dict[str, torch.distributed.ProcessGroup]:
    """The groups of a rank by the axis of the mesh, `tp/2` of two neighbours that hold the same KV head."""
    if not isinstance(model, RankModel):
        return {}
    mesh = model.mesh
    axes: dict[str, Axis] = {"dp_ep": mesh.data, **{name: mesh.axis(name) for name in ("tp", "ep", "dp", "pp")}}
    axes |= {f"tp/{axis.size}": axis for axis in mesh._repeats.values()}
    return {name: axis.group for name, axis in axes.items() if axis.group is not None}
