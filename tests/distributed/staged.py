"""What one rank of a pipeline says of a model, of one process with the same weights, and of what it sends and holds."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.runtime.build import build
from l4spec.runtime.measure.traffic import Ledger, counting_traffic
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.loss import IGNORED
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.step import train_step
from l4spec.runtime.parallel.training import local_of
from l4spec.sharding.layout import Layout
from l4spec.spec.model import ModelSpec
from tests.distributed.whole import relative
from tests.properties.runs import longest_prompt
from tests.runtime.tiny import ROPE, SWIGLU, Json, gqa, graph_of, moe, randomised, text_of, token_ids, vision

Results = dict[str, Any]
PATCH = 96
"""The token whose places images take; text has none."""
IDS = token_ids(4, 20, PATCH)
"""Four sequences over two and a half chunks."""
MAX_LEN = 24


def whole_model(*, tied: bool = False, images: bool = False) -> Model:
    """Llama 4's structure in five layers, which neither two nor three stages divide, every tensor random."""
    parts: Json = {
        "local": gqa(mask={"kind": "chunked", "size": 8}, position=ROPE, qk_norm={"kind": "l2"}, qkv_bias=True),
        "global": gqa(temperature={"floor_scale": 4, "attn_scale": 0.1}),
        "moe": moe(num_experts_per_token=1, num_shared_experts=1),
        "dense": SWIGLU,
    }
    kinds = [("local", "dense"), ("local", "moe"), ("global", "dense"), ("local", "moe"), ("global", "moe")]
    layers = [{"attention": attention, "ffn": ffn} for attention, ffn in kinds]
    graph = graph_of(text_of(parts, layers, tie_embeddings=tied), vision() if images else None)
    model = randomised(graph, dtype="fp32")
    model.image_token_id = PATCH
    return model


def with_images(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The same ids with places for three tiles, two of them in the first row and one in the third, and the tiles."""
    ids = ids.clone()
    ids[0, 2:10], ids[2, 5:9] = PATCH, PATCH
    return ids, torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def forward_passes(model: Model, ids: Tensor) -> dict[str, Tensor]:
    """Logits of the same rows read whole, in pieces, padded and packed."""
    cache, columns = model.new_cache(len(ids), MAX_LEN), torch.arange(ids.shape[1])
    with torch.no_grad():
        return {
            "whole": model(ids),
            "last": model(ids, logits="last"),
            "padded": model(ids, attention_mask=(columns >= 7).expand_as(ids).int())[:, 7:],
            "packed": model(ids, sequence_ids=(columns // 9).expand_as(ids)),
            "pieces": torch.cat([model(ids[:, n : n + 6], cache=cache) for n in range(0, ids.shape[1], 6)], dim=1),
        }


def generations(model: Model) -> Results:
    """Tokens after the same prompts: the likeliest, drawn, of unequal prompts until a stop, and after images."""
    results: Results = {
        "likeliest": model.generate(IDS, max_new_tokens=4, prefill_chunk=7).tolist(),
        "drawn": model.generate(IDS[:, :9], max_new_tokens=4, temperature=1.0, seed=3).tolist(),
    }
    stop = results["likeliest"][0][-3]
    prompts = [row[: len(row) - n] for n, row in enumerate(IDS.tolist())]
    results["stopped"] = model.generate(prompts, max_new_tokens=4, stop_ids=[stop])
    if model.num_tokens_per_tile:
        ids, tiles = with_images(IDS)
        results["seen"] = model.generate(ids, pixel_values=tiles, max_new_tokens=3, prefill_chunk=7).tolist()
    return results


def infer(rank: int, layout: Layout, options: dict[str, bool]) -> Results:
    """One rank's logits and tokens beside those of one process, and what it sent and holds."""
    whole = whole_model(**options)
    model = distribute(whole, layout)
    ids = model.own_rows(IDS)
    with torch.no_grad(), counting_traffic(_line_of(model)) as prefill:
        model(ids)
    with counting_traffic(_line_of(model)) as decode:
        model.generate(IDS, max_new_tokens=4)
    actual, expected = forward_passes(model, ids), forward_passes(whole, ids)
    return {
        "place": model.mesh.place,
        "shapes": {name: tuple(logits.shape) for name, logits in actual.items()},
        "differences": {name: relative(actual[name], expected[name]) for name in actual if model.line.is_last},
        "tokens": generations(model) == generations(whole),
        "prefill": _bytes_in_line(prefill),
        "decode": _bytes_in_line(decode),
        "param_bytes": sum(tensor.nbytes for tensor in model.state_dict(keep_vars=True).values()),
        "cache_bytes": model.new_cache(len(ids), MAX_LEN).num_bytes,
        "made_alike": _made_alike(whole.graph, layout),
    }


def _line_of(model: RankModel) -> dict[str, ProcessGroup]:
    return {} if model.line.pp.group is None else {"pp": model.line.pp.group}


def _bytes_in_line(ledger: Ledger) -> dict[str, int]:
    """Bytes that went to other stages, by collective."""
    return {collective: sent.payload_bytes for (axis, collective, _), sent in ledger.items() if axis == "pp"}


def _made_alike(graph: LayerGraph, layout: Layout) -> bool:
    """Whether weights made on the spot are those of a model made whole, a tied table at both ends too."""
    made, whole = distribute(build(graph, "meta"), layout, seed=5), build(graph, seed=5).state_dict()
    return all(torch.equal(tensor, _own_part(made, name, whole)) for name, tensor in made.state_dict().items())


def _own_part(model: RankModel, name: str, whole: dict[str, Tensor]) -> Tensor:
    return whole[name][tuple(slice(run.start, run.stop) for run in model.local_region(name))]


def train(rank: int, layout: Layout, options: dict[str, bool]) -> Results:
    """One rank's steps beside a backward pass of one process: in single sequences, again, in one, and recomputed."""
    whole = whole_model(**options)
    model = distribute(whole, layout, train=True)
    ids, tiles = with_images(IDS) if model.num_tokens_per_tile else (IDS, None)
    labels = ids.roll(-1, 1).masked_fill(ids.roll(-1, 1) == PATCH, IGNORED)
    labels[:, -1], labels[1, :9] = IGNORED, IGNORED  # so that sequences, and ranks, differ in how many count
    loss = torch.nn.functional.cross_entropy(whole(ids, pixel_values=tiles).flatten(0, 1), labels.flatten())
    torch.autograd.backward(loss)
    inputs: Results = {} if tiles is None else {"pixel_values": _own_tiles(model, ids, tiles)}

    def step(count: int | None) -> Results:
        in_flight = _watched(model)
        with counting_traffic(_line_of(model)) as ledger:
            own = train_step(model, model.own_rows(ids), model.own_rows(labels), num_microbatches=count, **inputs)
        return {
            "loss": float(own) / float(loss.detach()) - 1,
            "gradients": _worst_gradient(model, whole),
            "sent": _bytes_in_line(ledger).get("send", 0),
            "in_flight": max(in_flight, default=0),
        }

    steps = [step(None), step(None), step(1)]
    with torch.no_grad():
        evaluated = model.loss(model.own_rows(ids), model.own_rows(labels), **inputs)
        own_logits = model.own_rows(whole(ids, pixel_values=tiles))
        of_one = torch.nn.functional.cross_entropy(own_logits.flatten(0, 1), model.own_rows(labels).flatten())
    with pytest.raises(ValueError, match="cannot be cut into 3 equal microbatches"):
        step(3)
    model.checkpointing = "full"
    steps.append(step(None))
    return {
        "place": model.mesh.place,
        "steps": steps,
        "evaluated": float(evaluated) / float(of_one) - 1,
        "num_microbatches": len(model.own_rows(ids)),
        "table": _gradient_of_a_tied_table(model),
    }


def _own_tiles(model: RankModel, ids: Tensor, tiles: Tensor) -> Tensor:
    """The tiles whose places are in this rank's rows; they stand in order of the rows."""
    per_row = (ids == PATCH).sum(1) // model.num_tokens_per_tile
    own = model.own_rows(torch.arange(len(ids)))
    first = int(per_row[: int(own[0])].sum())
    return tiles[first : first + int(per_row[own].sum())]


def _watched(model: RankModel) -> list[int]:
    """How many microbatches a stage has between forward and backward, noted whenever one comes in."""
    lengths: list[int] = []
    prepared: Any = model.line.prepared
    if prepared is not None:
        stage = prepared.schedule._stage
        forward: Callable[..., Any] = type(stage).forward_one_chunk

        def counted(*args: Any, **kwargs: Any) -> Any:
            lengths.append(len(stage.fwd_cache) + 1)
            return forward(stage, *args, **kwargs)

        stage.forward_one_chunk = counted
    return lengths


def _worst_gradient(model: RankModel, whole: Model) -> tuple[float, str]:
    """Largest difference relative to the tensor's largest gradient, or to a tenth of the model's, and where."""
    expected = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    largest = torch.stack([grad.abs().max() for grad in expected.values()]).max()
    worst = (0.0, "")
    for name, parameter in model.named_parameters():
        part = _own_part(model, name, expected)
        if part.numel():
            assert parameter.grad is not None, name
            scale = torch.maximum(expected[name].abs().max(), 0.1 * largest)
            worst = max(worst, (relative(local_of(parameter.grad), part, scale), name))
    return worst


def _gradient_of_a_tied_table(model: RankModel) -> Tensor | None:
    if not model.graph.model.text.head.tied or not (model.line.is_first or model.line.is_last):
        return None
    grad = model.get_tensor("text.embedding.weight").grad
    assert grad is not None
    return local_of(grad)


def drawn(rank: int, data: Json, layout: Layout) -> Results:
    """One rank of any text model: whether its logits are those of one process, and what it holds."""
    whole = randomised(l4spec.compile(ModelSpec.model_validate(data)), dtype="fp32")
    model = distribute(whole, layout)
    ids = token_ids(2, min(12, longest_prompt(whole.graph)), whole.graph.model.text.head.vocab_size)
    with torch.no_grad():
        logits, expected = model(ids), whole(ids)
    return {
        "place": model.mesh.place,
        "equal": not model.line.is_last or torch.allclose(logits, expected, rtol=0, atol=0, equal_nan=True),
        "param_bytes": sum(tensor.nbytes for tensor in model.state_dict(keep_vars=True).values()),
    }
