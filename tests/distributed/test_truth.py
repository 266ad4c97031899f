"""Every layout gives what one process gives: logits, loss, gradients and generated tokens."""

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from l4spec.layers.common.parallel import Axis
from l4spec.runtime.parallel.loss import vocab_parallel_cross_entropy
from l4spec.sharding.layout import Layout
from tests.distributed.whole import alone, bound_of, generated, graph_from, on_rank, relative
from tests.distributed.world import run_world
from tests.runtime.tiny import token_ids

BATCH, TOKENS = 4, 40
"""Two chunks of tiny/scout and a part of the third."""
ONE_KV_HEAD = """\
l4spec: 1
name: one-kv-head
text:
  hidden_size: 24
  vocab_size: 51
  max_seq_len: 128
  norm: {kind: rmsnorm, eps: 1.0e-5}
  tie_embeddings: true
  parts:
    wide: {kind: gqa, num_heads: 8, num_kv_heads: 2, head_dim: 4, mask: {kind: sliding_window, size: 9},
           position: {kind: rope, theta: 10000}, qk_norm: {kind: rmsnorm}, qkv_bias: true, output_bias: true}
    mlp: {kind: mlp, intermediate_size: 20}
    few: {kind: moe, num_experts: 4, num_experts_per_token: 2, intermediate_size: 12, num_shared_experts: 2,
          shared_gate: true, capacity_factor: 0.8, router: {score: softmax, renormalize: true}}
  layers:
    - {attention: wide, ffn: mlp, form: parallel}
    - {attention: wide, ffn: few, form: sandwich}
"""
EXPERTS_BESIDE = """\
l4spec: 1
name: experts-beside
text:
  hidden_size: 24
  vocab_size: 51
  max_seq_len: 128
  norm: {kind: rmsnorm, eps: 1.0e-5}
  tie_embeddings: true
  parts:
    window: {kind: gqa, num_heads: 4, num_kv_heads: 2, head_dim: 4, mask: {kind: sliding_window, size: 9}, scale: 1.0,
             position: {kind: rope, theta: 10000}, qk_norm: {kind: rmsnorm}, value_norm: {eps: 1.0e-6}}
    full: {kind: gqa, num_heads: 4, num_kv_heads: 1, head_dim: 8, mask: {kind: causal}, scale: 1.0,
           position: {kind: rope, theta: 1000000, scaling: {kind: proportional, share: 0.5}},
           qk_norm: {kind: rmsnorm}, value_norm: {eps: 1.0e-6}, values_from_keys: true}
    dense: {kind: geglu, intermediate_size: 20}
    moe: {kind: moe, num_experts: 4, num_experts_per_token: 2, intermediate_size: 12, activation: gelu_tanh,
          input_norm: {eps: 1.0e-6},
          router: {score: softmax, renormalize: true, norm: {eps: 1.0e-6}, expert_scale: true}}
  layers:
    - {attention: window, ffn: dense, second_ffn: moe, form: sandwich, output_scale: true}
    - {attention: full, ffn: dense, second_ffn: moe, form: sandwich, output_scale: true}
"""
"""The block of Gemma 4."""
CASES = [
    ("tiny/scout", Layout(tp=2, ep=2)),
    ("tiny/maverick", Layout(tp=2, ep=2, dp=2)),
    ("tiny/deepseek", Layout(tp=4)),
    ("tiny/deepseek", Layout(ep=2, dp=2)),
    (ONE_KV_HEAD, Layout(tp=4, dp=2)),
    (ONE_KV_HEAD, Layout(ep=2)),
    (EXPERTS_BESIDE, Layout(tp=2, ep=2)),
    (EXPERTS_BESIDE, Layout(tp=4)),
]


@lru_cache(maxsize=4)
def one_process(text: str, dtype: str) -> tuple[Tensor, float, dict[str, Tensor]]:
    return alone(text, dtype, BATCH, TOKENS)


def named(value: object) -> str:
    names = {ONE_KV_HEAD: "one-kv-head", EXPERTS_BESIDE: "experts-beside"}
    return names.get(value, str(value).replace(" ", "-")) if isinstance(value, str) else str(value).replace(" ", "-")


@pytest.mark.parametrize(("text", "layout"), CASES, ids=named)
def test_a_layout_gives_the_logits_loss_and_gradients_of_one_process(text: str, layout: Layout) -> None:
    check(text, layout, "fp32")


def check(text: str, layout: Layout, dtype: str) -> None:
    """All ranks of a layout against one process; a gradient passes through each contraction twice more."""
    logits, loss, grads = one_process(text, dtype)
    bound, seen = bound_of(graph_from(text), dtype), set()
    ranks = run_world(layout.num_devices, on_rank, text, dtype, layout, BATCH, TOKENS)
    for own in ranks:
        data = own["place"].dp * layout.ep + own["place"].ep
        rows = logits.chunk(layout.dp * layout.ep)[data]
        assert relative(own["logits"], rows, logits) < bound
        for name, (region, grad) in own["grads"].items():
            seen.add(name)
            expected = grads[name][tuple(slice(run.start, run.stop) for run in region)]
            assert relative(grad, expected, grads[name]) < 3 * bound, name
    assert seen == set(grads)
    mean = sum(own["loss"] for own in ranks) / len(ranks)
    assert abs(mean - loss) < bound * max(abs(loss), 1.0)


@pytest.mark.parametrize(
    ("text", "layout"),
    [("tiny/scout", Layout(tp=2, ep=2)), ("tiny/deepseek", Layout(dp=2, tp=2)), (ONE_KV_HEAD, Layout(ep=4))],
    ids=named,
)
def test_a_layout_says_what_one_process_says(text: str, layout: Layout) -> None:
    vocab = graph_from(text).model.text.head.vocab_size
    prompts = [token_ids(1, n, vocab, seed=n)[0].tolist() for n in (5, 17, 40, 3)]
    expected = generated(0, text, None, prompts)
    for own in run_world(layout.num_devices, generated, text, layout, prompts):
        assert own == expected


def test_cross_entropy_of_all_columns_is_torchs() -> None:
    logits, labels = torch.randn(3, 5, 11, dtype=torch.float64), token_ids(3, 5, 11)
    labels[0, 2] = -100
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = vocab_parallel_cross_entropy(ours, labels, range(11), Axis())
    expected = torch.nn.functional.cross_entropy(theirs.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(loss, expected)
    torch.autograd.backward((2 * loss, 2 * expected))
    torch.testing.assert_close(ours.grad, theirs.grad)
