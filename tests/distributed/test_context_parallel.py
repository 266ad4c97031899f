"""A prefill whose tokens are divided among ranks gives what one process gives, and sends what the plan says."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from l4spec.layers.attention.ring import Merged, _plain, attend_with_sums
from l4spec.runtime.parallel.distribute import build_rank
from l4spec.runtime.parallel.mesh import Mesh
from l4spec.sharding.layout import Layout
from l4spec.sharding.sequence import runs_of, sent_tokens
from planners.catalog import engine, quantization
from planners.collectives.communication import communication
from planners.counts.kv_cache import bytes_per_token
from planners.counts.weights import scheme_of
from planners.device.memory import Setting, place
from tests.distributed.divided import Prefill, RankResult, continued, one_process, prefills, refused, whole
from tests.distributed.whole import bound_of, graph_from, relative
from tests.distributed.world import run_world
from tests.runtime.tiny import token_ids

WINDOWS = """\
l4spec: 1
name: windows
text:
  hidden_size: 24
  vocab_size: 51
  max_seq_len: 128
  norm: {kind: rmsnorm, eps: 1.0e-5}
  tie_embeddings: true
  learned_positions: true
  parts:
    wide: {kind: gqa, num_heads: 8, num_kv_heads: 2, head_dim: 4, mask: {kind: sliding_window, size: 23},
           position: {kind: rope, theta: 10000}, qk_norm: {kind: rmsnorm}, qkv_bias: true, output_bias: true}
    near: {kind: gqa, num_heads: 4, num_kv_heads: 4, head_dim: 4, mask: {kind: sliding_window, size: 1},
           position: {kind: none}}
    capped: {kind: gqa, num_heads: 4, num_kv_heads: 2, head_dim: 5, mask: {kind: causal}, logit_softcap: 2.0,
             position: {kind: none}, temperature: {floor_scale: 4, attn_scale: 0.1}}
    latent: {kind: mla, num_heads: 4, q_lora_rank: null, kv_lora_rank: 12, qk_nope_head_dim: 6, qk_rope_head_dim: 4,
             v_head_dim: 12, mask: {kind: sliding_window, size: 12}, position: {kind: rope, theta: 10000},
             norm_eps: 1.0e-6, bias: true}
    mlp: {kind: mlp, intermediate_size: 20}
    few: {kind: moe, num_experts: 4, num_experts_per_token: 2, intermediate_size: 12, num_shared_experts: 2,
          shared_gate: true, capacity_factor: 0.8, router: {score: softmax, renormalize: true}}
  layers:
    - {attention: wide, ffn: few}
    - {attention: near, ffn: mlp, form: parallel}
    - {attention: latent, ffn: few, form: sandwich}
    - {attention: capped, ffn: few}
"""
"""Windows of more than one rank's tokens and of one token, soft-capped scores, experts that tokens queue for."""

SHORT, PARTIAL, LONG = 64, 100, 250
PREFILLS = [
    Prefill("tiny/scout", Layout(cp=4), SHORT),
    Prefill("tiny/scout", Layout(cp=4), LONG, dtype="fp64"),
    Prefill("tiny/scout", Layout(cp=2, tp=2), PARTIAL),
    Prefill("tiny/scout", Layout(cp=4), PARTIAL, tiles=5),
    Prefill("tiny/maverick", Layout(cp=2, ep=2), PARTIAL),
    Prefill("tiny/maverick", Layout(cp=2, dp=2), 33),
    Prefill("tiny/deepseek", Layout(cp=4), 7),
    Prefill("tiny/deepseek", Layout(cp=2, tp=2), PARTIAL),
    Prefill(WINDOWS, Layout(cp=4), 30, batch=3),
    Prefill(WINDOWS, Layout(cp=2, ep=2), 30, dtype="fp64"),
    Prefill("tiny/maverick", Layout(cp=2, tp=2, ep=2), PARTIAL),
    Prefill("tiny/deepseek", Layout(cp=8), PARTIAL),
    Prefill("tiny/scout", Layout(cp=8), LONG),
    Prefill(WINDOWS, Layout(cp=2, dp=2, ep=2), 41, batch=4),
]


@pytest.mark.parametrize("size", [4, 8])
def test_a_divided_prefill_is_that_of_one_process(size: int) -> None:
    """The logits of every token and of the last one, and the caches and the bytes sent that the plan tells of."""
    cases = [case for case in PREFILLS if case.layout.num_devices == size]
    ranks = run_world(size, prefills, cases)
    assert len(cases) >= 4
    for number, case in enumerate(cases):
        check(case, [results[number] for results in ranks])


def check(case: Prefill, ranks: list[RankResult], bound: float | None = None) -> None:
    """Logits within `bound` of the largest one, by default one of rounding; cache and traffic to the byte."""
    layout, logits = case.layout, one_process(case)
    bound = bound_of(graph_from(case.text), case.dtype) if bound is None else bound
    for rows, own in zip(logits.chunk(layout.dp * layout.ep), by_rows(ranks), strict=True):
        for tp in range(layout.tp):
            joined = torch.cat([result.logits for result in own if result.place.tp == tp], dim=1)
            assert relative(joined, rows, logits) <= bound, case
        assert max(relative(result.last, rows[:, -1:], logits) for result in own) <= bound, case
    check_caches(case, ranks)
    check_traffic(case, ranks)


def by_rows(ranks: list[RankResult]) -> list[list[RankResult]]:
    """The ranks that run the same sequences, in order of their tokens."""
    places = sorted({result.place[:3] for result in ranks})
    return [[result for result in ranks if result.place[:3] == data] for data in places]


def check_caches(case: Prefill, ranks: list[RankResult]) -> None:
    itemsize = torch.empty((), dtype=whole(case.text, case.dtype).dtype).element_size()
    assert {result.cache_bytes for result in ranks} == {planned_cache(case, itemsize)}


def planned_cache(case: Prefill, itemsize: int) -> int:
    scheme = scheme_of(quantization("bf16"))
    setting = Setting(graph_from(case.text), scheme, engine("ideal"), None, itemsize, None, prefill_chunk=8192)
    return max(use.cache for use in place(setting, case.layout).uses(case.tokens, case.batch))


def check_traffic(case: Prefill, ranks: list[RankResult]) -> None:
    """Every rank sends what the rank after it sees, the busiest what the plan says (of bf16), and nothing else."""
    graph, layout = graph_from(case.text), case.layout
    dtype, sequences = whole(case.text, case.dtype).dtype, case.batch // (layout.dp * layout.ep)
    row = communication(graph, layout, context=case.tokens)[-1]
    assert row.axis == "cp"
    assert row.bytes_per_sequence is not None
    expected = [0] * layout.cp
    for group, tokens in sent_tokens(graph, runs_of(graph, case.tokens, layout.cp)):
        each = group.count * bytes_per_token(group, layout, dtype.itemsize) * sequences
        expected = [total + each * count for total, count in zip(expected, tokens, strict=True)]
    assert max(expected) * 2 == row.bytes_per_sequence * sequences * dtype.itemsize
    for result in ranks:
        along_cp = {collective: sent for (axis, collective, _), sent in result.sent.items() if axis == "cp"}
        assert expected[result.place.cp] == (along_cp["send"].payload_bytes if "send" in along_cp else 0)
        counts = {"all-gather"} if "capacity_factor" in case.text else set()  # of the tokens that queue for experts
        assert set(along_cp) <= {"send"} | counts


def test_chunked_layers_send_nothing() -> None:
    text = WINDOWS.replace("kind: sliding_window, size: 23", "kind: chunked, size: 4")
    text = text[: text.index("    - {attention: near")]
    case = Prefill(text, Layout(cp=2), 11)
    ranks = [results[0] for results in run_world(2, prefills, [case])]
    assert communication(graph_from(text), case.layout, context=case.tokens)[-1].bytes_per_sequence == 0
    assert not any(collective == "send" for results in ranks for _, collective, _ in results.sent)
    assert relative(torch.cat([results.logits for results in ranks], dim=1), one_process(case)) < bound_of(
        graph_from(text), case.dtype
    )


@pytest.mark.parametrize(
    ("text", "layout", "decoding"),
    [
        ("tiny/scout", Layout(cp=4), None),
        ("tiny/maverick", Layout(cp=2, tp=2), Layout(tp=2, dp=2)),
        (WINDOWS.replace(", capacity_factor: 0.8", ""), Layout(cp=4), None),
    ],
    ids=["scout", "maverick", "windows"],
)
def test_joined_caches_go_on_without_cp(text: str, layout: Layout, decoding: Layout | None) -> None:
    case = Prefill(text, layout, 75)
    vocab = graph_from(text).model.text.head.vocab_size
    new = token_ids(case.batch, 20, vocab, seed=9)
    ids = torch.cat((token_ids(case.batch, case.tokens, vocab, seed=case.tokens), new), dim=1)
    with torch.no_grad():
        expected = whole(text, case.dtype)(ids)
    for _, logits in run_world(4, continued, case, decoding, new):
        assert relative(logits, expected[:, case.tokens :], expected) < bound_of(graph_from(text), case.dtype)


def test_what_is_no_prefill_is_refused_with_the_reason() -> None:
    (first, second) = run_world(2, refused, "tiny/scout", Layout(cp=2))
    assert first == second
    assert "UserError: tp1 ep1 pp1 dp1 cp2: cp=2 cuts sequences between chunks of 16 tokens" in first["short"]
    assert "17 tokens or more, found 16" in first["short"]
    assert "cp is for prefills, and 40 tokens are cached already" in first["decode"]
    assert "cp is for prefills, and 40 tokens are cached already" in first["generate"]
    assert "padded and packed sequences are not divided" in first["padded"]
    assert "padded and packed sequences are not divided" in first["packed"]
    assert "training with cp is not there yet" in first["train"]
    assert "losses with cp are not there yet" in first["loss"]


@pytest.mark.parametrize("name", ["tiny/scout", "tiny/maverick", "tiny/deepseek"])
@pytest.mark.parametrize("context", [100, 129, 1000])
def test_the_cache_of_a_rank_that_is_built_alone_is_the_plans(name: str, context: int) -> None:
    for layout in (Layout(cp=2), Layout(cp=4, tp=2), Layout(cp=2, dp=2)):
        case = Prefill(name, layout, context, batch=4)
        ends = (Mesh(layout, rank) for rank in (0, layout.num_devices - 1))
        ranks = (build_rank(graph_from(name), mesh, torch.bfloat16) for mesh in ends)
        sizes = {model.new_cache(4 // layout.dp, context).num_bytes for model in ranks}
        assert sizes == {planned_cache(case, 2)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("width", [8, 12])
def test_blocks_of_keys_merge_to_attention_over_all(dtype: torch.dtype, width: int) -> None:
    """8 query heads on 2 key heads, values as wide as keys or not; bf16 rounds each block's result and the sum."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 30, dim, generator=generator, dtype=torch.float64).to(dtype)
        for heads, dim in ((8, 8), (2, 8), (2, width))
    )
    exact = scaled_dot_product_attention(
        query.double(), key.double(), value.double(), is_causal=True, scale=0.3, enable_gqa=True
    )[:, :, 20:]
    last = query[:, :, 20:]
    merged = Merged(*attend_with_sums(last, key[:, :, 20:], value[:, :, 20:], causal=True, scale=0.3))
    for block in (slice(7, 20), slice(0, 7)):
        merged.add(*attend_with_sums(last, key[:, :, block], value[:, :, block], causal=False, scale=0.3))
    roundings = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8}
    assert relative(merged.result.double(), exact) < 16 * roundings[dtype]


@pytest.mark.parametrize("causal", [True, False])
def test_plain_blocks_are_the_fused_ones(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l4spec.layers.attention.ring.BLOCK", 7)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, n, 20, 8, generator=generator, dtype=torch.float64) for n in (6, 2, 2))
    fused = attend_with_sums(query, key, value, causal=causal, scale=0.3)
    plain = _plain(query, key, value, causal=causal, scale=0.3, cap=None)
    for ours, theirs in zip(plain, fused, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
