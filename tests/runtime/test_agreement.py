"""A prompt read at once, token by token or in pieces, alone, padded or packed: always the same logits.

In fp64, so that a wrong mask cannot hide after rounding: 1e-12 is 10,000 units of rounding, and a single wrong key
moves a logit by more than 1e-3.
"""

import pytest
import torch
from torch import Tensor

from l4spec.runtime.model import Model
from tests.runtime.hybrid_families import DELTA_NET, KDA, MAMBA2
from tests.runtime.sparse_families import INDEX
from tests.runtime.tiny import MLA, ROPE, SWIGLU, Json, gqa, graph_of, llama4_text, moe, randomised, text_of, token_ids

LENGTH = 37
TOLERANCE = 1e-12


def one_kind(attention: Json, **others: object) -> Json:
    return text_of({"a": attention, "f": SWIGLU}, [{"attention": "a", "ffn": "f", "repeat": 2}], **others)


MODELS: dict[str, Json] = {
    "llama4": llama4_text(),
    "llama4, chunk of one": llama4_text(1),
    "llama4, chunk longer than the text": llama4_text(64),
    "window": one_kind(gqa(mask={"kind": "sliding_window", "size": 5}, position=ROPE)),
    "window of one": one_kind(gqa(mask={"kind": "sliding_window", "size": 1}, position=ROPE)),
    "window, soft-capped": one_kind(gqa(mask={"kind": "sliding_window", "size": 5}, logit_softcap=2.0)),
    "chunks, soft-capped": one_kind(gqa(mask={"kind": "chunked", "size": 8}, logit_softcap=2.0)),
    "causal, soft-capped": one_kind(gqa(logit_softcap=2.0, position=ROPE)),
    "partial rotary": one_kind(gqa(position=ROPE | {"rotary_dim": 6}, qk_norm={"kind": "rmsnorm"})),
    "learned positions": one_kind(gqa(), learned_positions=True),
    "mla": one_kind(MLA),
    "mla, chunks": one_kind(MLA | {"mask": {"kind": "chunked", "size": 8}}),
    "mla, window": one_kind(MLA | {"mask": {"kind": "sliding_window", "size": 5}, "q_lora_rank": None}),
    "sparse mla": one_kind(MLA | INDEX | {"kind": "sparse_mla"}),
    "delta net": one_kind(DELTA_NET),
    "mamba-2": one_kind(MAMBA2),
    "kda": one_kind(KDA),
    "delta net and a window": text_of(
        {"d": DELTA_NET, "w": gqa(mask={"kind": "sliding_window", "size": 5}, sinks=True, position=ROPE), "f": SWIGLU},
        [{"attention": "d", "ffn": "f"}, {"attention": "w", "ffn": "f"}],
    ),
    "multi-query": one_kind(gqa(num_kv_heads=1, position=ROPE)),
    "parallel blocks": text_of(
        {"a": gqa(position=ROPE), "f": moe()}, [{"attention": "a", "ffn": "f", "form": "parallel", "repeat": 2}]
    ),
    "post-norm, attention alone": text_of({"a": gqa(position=ROPE)}, [{"attention": "a", "form": "post_norm"}] * 2),
}
PIECES = [[LENGTH], [1] * LENGTH, [5, 3, 1, 20, 8], [8, 8, 8, 8, 5], [16, 21], [36, 1], [7, 30]]


@pytest.fixture(params=MODELS, scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    return randomised(graph_of(MODELS[request.param]))


def in_pieces(model: Model, ids: Tensor, pieces: list[int], mask: Tensor | None = None) -> Tensor:
    cache = model.new_cache(ids.shape[0], ids.shape[1])
    parts, start = [], 0
    for size in pieces:
        here = slice(start, start + size)
        parts.append(model(ids[:, here], cache=cache, attention_mask=None if mask is None else mask[:, here]))
        start += size
    return torch.cat(parts, dim=1)


def close(got: Tensor, expected: Tensor) -> bool:
    return bool(torch.isfinite(got).all()) and float((got - expected).abs().max()) < TOLERANCE


@pytest.mark.parametrize("pieces", PIECES, ids=str)
def test_pieces_of_a_prompt_agree_with_the_whole(model: Model, pieces: list[int]) -> None:
    ids = token_ids(2, LENGTH)
    with torch.no_grad():
        assert close(in_pieces(model, ids, pieces), model(ids))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_equals_the_row_alone(model: Model, side: str) -> None:
    ids = token_ids(3, LENGTH)
    mask = torch.ones_like(ids)
    real = {0: slice(0, LENGTH), 1: slice(11, LENGTH), 2: slice(LENGTH - 1, LENGTH)}
    if side == "right":
        real = {0: slice(0, LENGTH), 1: slice(0, 26), 2: slice(0, 1)}
    for row, where in real.items():
        mask[row] = 0
        mask[row, where] = 1
    with torch.no_grad():
        got = model(ids, attention_mask=mask)
        last = model(ids, attention_mask=mask, logits="last")
        for row, where in real.items():
            alone = model(ids[row : row + 1, where])
            assert close(got[row : row + 1, where], alone)
            assert close(last[row : row + 1], alone[:, -1:])


@pytest.mark.parametrize("pieces", [[20, *[1] * 17], *PIECES[1:5]], ids=str)
def test_a_left_padded_batch_goes_on_from_its_cache(model: Model, pieces: list[int]) -> None:
    ids = token_ids(3, LENGTH)
    mask = torch.ones_like(ids)
    mask[1, :13] = 0
    mask[2, :4] = 0
    with torch.no_grad():
        got = in_pieces(model, ids, pieces, mask)
        for row, padding in ((0, 0), (1, 13), (2, 4)):
            assert close(got[row : row + 1, padding:], model(ids[row : row + 1, padding:]))


def test_packed_sequences_do_not_see_each_other(model: Model) -> None:
    ids = token_ids(2, LENGTH)
    lengths = [[10, 27], [20, 9, 8]]
    sequence_ids = torch.stack([torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths])
    with torch.no_grad():
        got = model(ids, sequence_ids=sequence_ids)
        for row, sizes in enumerate(lengths):
            start = 0
            for size in sizes:
                alone = model(ids[row : row + 1, start : start + size])
                assert close(got[row : row + 1, start : start + size], alone)
                start += size


def test_a_token_changes_no_earlier_logits(model: Model) -> None:
    ids = token_ids(1, LENGTH)
    changed = ids.clone()
    changed[0, 20] = (changed[0, 20] + 1) % 97
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert close(before[:, :20], after[:, :20])  # not to the bit: experts get other numbers of rows
    assert float((before[:, 20] - after[:, 20]).abs().max()) > 1e-3


def test_the_last_logits_are_the_last_of_all(model: Model) -> None:
    ids = token_ids(2, LENGTH)
    with torch.no_grad():
        assert close(model(ids, logits="last"), model(ids)[:, -1:])


def test_a_reset_cache_forgets_everything(model: Model) -> None:
    ids = token_ids(1, LENGTH)
    cache = model.new_cache(1, LENGTH)
    first = model(ids, cache=cache)
    cache.reset()
    assert torch.equal(model(ids, cache=cache), first)


def test_tokens_of_another_chunk_are_not_seen() -> None:
    model = randomised(graph_of(one_kind(gqa(mask={"kind": "chunked", "size": 8}))))
    ids = token_ids(1, 20)
    changed = ids.clone()
    changed[0, 3] = (changed[0, 3] + 1) % 97
    with torch.no_grad():
        difference = (model(ids) - model(changed)).abs().amax(dim=-1)[0]
    assert (difference[3:8] > 1e-6).all()
    assert (difference[8:] < TOLERANCE).all()


def test_blocks_of_queries_agree_with_one_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    from l4spec.layers.attention import compute

    ids = token_ids(2, LENGTH)
    for text in (MODELS["llama4"], MODELS["window"], MODELS["causal, soft-capped"], MODELS["mla, window"]):
        model = randomised(graph_of(text))
        with torch.no_grad():
            expected = model(ids)
            monkeypatch.setattr(compute, "BLOCK", 3)
            assert close(in_pieces(model, ids, [5, 32]), expected)
            monkeypatch.undo()


def test_what_does_not_fit_together_is_refused() -> None:
    model = randomised(graph_of(llama4_text()))
    ids = token_ids(2, 5)
    cache = model.new_cache(2, 6)
    model(ids, cache=cache)
    with pytest.raises(ValueError, match="room for 6 tokens, found 5 \\+ 5"):
        model(ids, cache=cache)
    with pytest.raises(ValueError, match="for 2 sequences, found 1"):
        model(ids[:1], cache=cache)
    with pytest.raises(ValueError, match="must be shaped as input_ids"):
        model(ids, attention_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="packed sequences"):
        model(ids, sequence_ids=torch.zeros_like(ids), cache=model.new_cache(2, 6))
    with pytest.raises(ValueError, match="at least one token"):
        model(ids[:, :0])
    with pytest.raises(ValueError, match="at least 1"):
        model.new_cache(0, 5)


def test_a_bidirectional_text_model_has_no_cache_but_runs() -> None:
    model = randomised(graph_of(one_kind(gqa(mask={"kind": "none"}, position=ROPE))))
    ids = token_ids(2, 12)
    with pytest.raises(ValueError, match="sees later tokens"):
        model.new_cache(1, 5)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with torch.no_grad():
        assert close(model(ids, attention_mask=mask)[1:, 5:], model(ids[1:, 5:]))
        packed = model(ids, sequence_ids=torch.tensor([[0] * 4 + [1] * 8] * 2))
        assert close(packed[:, 4:], model(ids[:, 4:]))
