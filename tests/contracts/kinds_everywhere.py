"""Models that together have every kind, and all kinds copied under other names, as another package brings its own."""

import re
from collections.abc import Callable
from pathlib import Path

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.spec.document import read_text
from l4spec.spec.parse import parse_spec

LAYERS = Path(__file__).parents[2] / "l4spec" / "layers"
RENAMED = "renamed_"
KINDS_OF_L4SPEC = tuple(
    sorted(
        folder.name for folder in LAYERS.iterdir() if (folder / "spec.py").is_file() and (folder / "cost.py").is_file()
    )
)

OTHERS = """
l4spec: 1
name: others
text:
  hidden_size: 24
  vocab_size: 96
  max_seq_len: 64
  dtype: fp32
  learned_positions: true
  norm: {kind: layernorm, eps: 1.0e-5}
  parts:
    window: {kind: gqa, num_heads: 6, num_kv_heads: 2, head_dim: 4, mask: {kind: sliding_window, size: 12},
             position: {kind: none}, logit_softcap: 30.0}
    delta: {kind: gated_delta_net, num_key_heads: 2, num_value_heads: 4, key_head_dim: 6, value_head_dim: 10}
    kda: {kind: kda, num_heads: 3, head_dim: 6}
    mamba: {kind: mamba2, num_heads: 6, num_groups: 2, head_dim: 4, state_size: 10}
    sparse: {kind: sparse_mla, num_heads: 2, q_lora_rank: 8, kv_lora_rank: 8, qk_nope_head_dim: 4, qk_rope_head_dim: 4,
             v_head_dim: 4, norm_eps: 1.0e-6, mask: {kind: causal}, position: {kind: rope, theta: 10000},
             index_num_heads: 2, index_head_dim: 6, index_topk: 4}
    geglu: {kind: geglu, intermediate_size: 40}
    mlp: {kind: mlp, intermediate_size: 56}
    moe: {kind: moe, num_experts: 6, num_experts_per_token: 2, num_shared_experts: 2, shared_gate: true,
          intermediate_size: 48, capacity_factor: 1.5, router: {score: softmax, scales: output}}
  layers:
    - {attention: window, ffn: geglu}
    - {attention: window, ffn: mlp, form: sandwich}
    - {attention: mamba, form: output_norm}
    - {attention: delta, ffn: moe}
    - {attention: kda}
    - {attention: sparse}
"""
STREAMS = """
l4spec: 1
name: streams
text:
  hidden_size: 24
  vocab_size: 96
  max_seq_len: 64
  dtype: fp32
  norm: {kind: rmsnorm, eps: 1.0e-5}
  streams: {count: 3}
  parts:
    sparse: {kind: compressed_attention, num_heads: 4, head_dim: 6, rope_head_dim: 4, q_lora_rank: 8, window: 5,
             num_output_groups: 2, output_lora_rank: 6, norm_eps: 1.0e-6, position: {kind: rope, theta: 10000},
             compression: {ratio: 4, overlap: true, index: {num_heads: 2, head_dim: 6, topk: 2}}}
    hashed: {kind: moe, num_experts: 6, num_experts_per_token: 2, intermediate_size: 16,
             router: {score: sqrt_softplus, by_token: true}}
  layers:
    - {attention: sparse, ffn: hashed}
"""
SEEING = """
l4spec: 1
name: seeing
text:
  hidden_size: 24
  vocab_size: 96
  max_seq_len: 64
  dtype: fp32
  norm: {kind: rmsnorm, eps: 1.0e-5}
  parts:
    attention: {kind: gqa, num_heads: 4, num_kv_heads: 2, head_dim: 8, mask: {kind: causal},
                position: {kind: rope, theta: 10000, sections: {time: 2, row: 1, column: 1, interleaved: true}}}
    ffn: {kind: swiglu, intermediate_size: 40}
  layers:
    - {attention: attention, ffn: ffn, repeat: 2}
vision:
  image_size: 16
  patch_size: 4
  temporal_patch_size: 2
  tower:
    hidden_size: 16
    norm: {kind: layernorm, eps: 1.0e-6}
    learned_positions: true
    position_grid: 3
    parts:
      attention: {kind: gqa, num_heads: 2, num_kv_heads: 2, head_dim: 8, mask: {kind: none},
                  position: {kind: rope_2d, theta: 10000, layout: half, first: row}}
      mlp: {kind: mlp, intermediate_size: 32}
    layers: [{attention: attention, ffn: mlp, repeat: 2}]
  adapter: {kind: patch_merger, spatial_merge_size: 2, output_size: 40, eps: 1.0e-6}
  projector: {kind: linear, output_size: 24, bias: true}
  deepstack:
    blocks: [0]
    adapter: {kind: patch_merger, spatial_merge_size: 2, output_size: 40, eps: 1.0e-6, norms: folded}
"""
GRAPHS: tuple[Callable[[], LayerGraph], ...] = (
    lambda: l4spec.compile(l4spec.load("tiny/scout")),
    lambda: l4spec.compile(l4spec.load("tiny/deepseek")),
    lambda: l4spec.compile(parse_spec(read_text(OTHERS, "others.yaml"))),
    lambda: l4spec.compile(parse_spec(read_text(STREAMS, "streams.yaml"))),
    lambda: l4spec.compile(parse_spec(read_text(SEEING, "seeing.yaml"))),
)


def install_renamed_kinds(folder: Path) -> None:
    """Copy each kind's folder as a package of its own with another name, and register them by entry points."""
    entries = []
    for kind in KINDS_OF_L4SPEC:
        package = folder / f"{RENAMED}{kind}"
        package.mkdir()
        for file in (LAYERS / kind).glob("*.py"):
            text = file.read_text(encoding="utf-8").replace(f"l4spec.layers.{kind}", f"{RENAMED}{kind}")
            text = re.sub(rf'kind: Literal\["{kind}"\]', f'kind: Literal["{RENAMED}{kind}"]', text)
            (package / file.name).write_text(text, encoding="utf-8")
        entries.append(f"{RENAMED}{kind} = {RENAMED}{kind}:KIND")
    metadata = folder / "renamed_kinds-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: renamed-kinds\nVersion: 1.0\n", encoding="utf-8")
    lines = ["[l4spec.layers]", *entries]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
