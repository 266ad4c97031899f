"""What engines logged for hybrid and sparse models beside the plan's number: `docs/hybrid-caches.md`, row by row.

A row is `exact` where the rule of the engine is public: then the plan gives its number to the byte, token or
printed digit. Other rows say why they have none. `python -m tests.validation.hybrid_caches` writes the page.
"""

import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import l4spec
import planners
from l4spec.graph.layer_graph import LayerGraph
from l4spec.sharding.layout import Layout
from l4spec.spec.model import ModelSpec
from planners.catalog import engine
from planners.catalog.engines import Engine, LayerGroupsKv
from planners.counts.kv_cache import (
    CacheRow,
    block_bytes,
    blocks_per_sequence,
    model_rows,
    plan_cache,
    requests_in_blocks,
    state_bytes_of,
    tokens_in_blocks,
    tokens_of_block,
    tokens_of_requests,
)

GIB, MIB = 2**30, 2**20
Row = dict[str, str]
TABLE = Path(planners.__file__).with_name("evidence") / "hybrid_caches.csv"
ROWS: list[Row] = list(csv.DictReader(TABLE.read_text(encoding="utf-8").splitlines()))


def model(name: str, parts: dict[str, Any], layers: list[dict[str, Any]], hidden: int) -> LayerGraph:
    text = {"hidden_size": hidden, "vocab_size": 1024, "max_seq_len": 262144, "dtype": "bf16", "layers": layers}
    text |= {"parts": parts, "norm": {"kind": "rmsnorm", "eps": 1e-6}}
    return l4spec.compile(ModelSpec.model_validate({"l4spec": 1, "name": name, "text": text}))


@cache
def gpt_oss_120b() -> LayerGraph:
    """36 layers, every other one a window of 128, 8 KV heads of 64 (config.json of openai/gpt-oss-120b)."""
    heads = {"kind": "gqa", "num_heads": 64, "num_kv_heads": 8, "head_dim": 64, "position": {"kind": "none"}}
    window = heads | {"sinks": True, "mask": {"kind": "sliding_window", "size": 128}}
    full = heads | {"sinks": True, "mask": {"kind": "causal"}}
    blocks = [{"attention": "window"}, {"attention": "full"}]
    return model("gpt-oss-120b", {"window": window, "full": full}, [{"repeat": 18, "blocks": blocks}], 2880)


@cache
def qwen_27b(num_draft_layers: int = 0) -> LayerGraph:
    """Three delta nets to an attention layer, 64 layers (config.json of Qwen/Qwen3.5-27B; 3.6 and 3.8 are as wide)."""
    delta = {"kind": "gated_delta_net", "num_key_heads": 16, "num_value_heads": 48}
    delta |= {"key_head_dim": 128, "value_head_dim": 128, "conv_kernel_size": 4}
    full = {"kind": "gqa", "num_heads": 24, "num_kv_heads": 4, "head_dim": 256, "output_gate": "elementwise"}
    full |= {"mask": {"kind": "causal"}, "position": {"kind": "rope", "theta": 1e7, "rotary_dim": 64}}
    group = {"repeat": 16, "blocks": [{"attention": "delta", "repeat": 3}, {"attention": "full"}]}
    draft = [{"attention": "full", "repeat": num_draft_layers}] if num_draft_layers else []
    return model("qwen-27b", {"delta": delta, "full": full}, [group, *draft], 5120)


def per_device(graph: LayerGraph, engine_name: str, tp: int = 1, dtype_bytes: int = 2) -> tuple[CacheRow, ...]:
    return model_rows(graph, Layout(tp=tp), dtype_bytes, state_bytes_of(engine(engine_name)))


def with_prefix_caching(policy: Engine) -> Engine:
    """Two blocks per group of states: the running one and the last one that can be reused (HYB-05's boot log)."""
    assert isinstance(policy.kv, LayerGroupsKv)
    assert policy.kv.state_blocks is not None
    twice = policy.kv.state_blocks.model_copy(update={"value": 2})
    return policy.model_copy(update={"kv": policy.kv.model_copy(update={"state_blocks": twice})})


def gpt_oss_pool() -> float:
    rows, hybrid = per_device(gpt_oss_120b(), "vllm-hybrid"), engine("vllm-hybrid")
    return round(9798 * block_bytes(rows, hybrid) / GIB, 2)


def gpt_oss_tokens() -> float:
    """Every pool that is printed as 5.38 GiB holds within 0.1 % of the log; 9,798 blocks give it to the token."""
    rows, hybrid = per_device(gpt_oss_120b(), "vllm-hybrid"), engine("vllm-hybrid")
    blocks = [int(pool * GIB) // block_bytes(rows, hybrid) for pool in (5.375, 5.385)]
    assert blocks[0] <= 9798 <= blocks[1]
    return tokens_in_blocks(rows, hybrid, 9798)


def llama_cpp(law: str) -> float:
    cells = plan_cache(qwen_27b(), engine("llama.cpp"), dtype="fp16", context=65536, batch=4)
    rows = per_device(qwen_27b(), "llama.cpp")
    of_state = 4 * sum(row.count * row.bytes_per_token for row in rows if row.bound.is_state)
    return (of_state if law == "state" else cells.bytes - of_state) / MIB


def vllm_with_prefix_caching() -> float:
    rows, hybrid = per_device(qwen_27b(), "vllm-hybrid", tp=2, dtype_bytes=1), engine("vllm-hybrid")
    cached = with_prefix_caching(hybrid)
    assert tokens_of_block(rows, cached) == 1568
    blocks = int(4.99 * GIB) // block_bytes(rows, cached)
    assert round(requests_in_blocks(rows, cached, blocks, 131072), 2) == 2.31
    return tokens_of_requests(rows, cached, blocks, 131072)


def vllm_019() -> float:
    rows, hybrid = per_device(qwen_27b(), "vllm-hybrid"), engine("vllm-hybrid")
    assert tokens_of_block(rows, hybrid) == 784
    need = blocks_per_sequence(rows, hybrid, 32768)
    blocks = next(n for n in range(1, 10_000) if round(n / need, 2) == 33.04)
    return tokens_in_blocks(rows, hybrid, blocks)


def sparse_with_draft_layers() -> float:
    """The plan's latent of 512 + 64 in fp8, and by the published law an index key of 128 in fp8 with its fp32 scale."""
    latent = {"kind": "mla", "num_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128}
    latent |= {"qk_rope_head_dim": 64, "v_head_dim": 128, "mask": {"kind": "causal"}}
    latent |= {"position": {"kind": "rope", "theta": 10000.0}, "norm_eps": 1e-6}
    graph = model("latent", {"latent": latent}, [{"attention": "latent"}], 7168)
    per_layer = sum(row.bytes_per_token for row in model_rows(graph, Layout(), 1)) + 128 + 4
    assert round(2 * 61 * per_layer / 1000) == 86
    return round((61 + 3) * per_layer / 1000)


def draft_head() -> float:
    def grows(graph: LayerGraph) -> int:
        return plan_cache(graph, engine("full"), dtype="bf16", context=4096, batch=1).bytes_per_token_unbounded

    return grows(qwen_27b(1)) / grows(qwen_27b())


def gemma_4(context: int) -> float:
    """GB of one sequence: full layers keep the context, windows 1,024 tokens and a batch of 512."""
    graph = l4spec.compile(l4spec.load("gemma-4-26b-a4b"))
    return round(plan_cache(graph, engine("llama.cpp"), dtype="fp16", context=context, batch=1).bytes / 1e9, 2)


PLANNED: dict[str, Callable[[], float]] = {
    "HYB-01": gpt_oss_pool,
    "HYB-02": gpt_oss_tokens,
    "HYB-03": lambda: llama_cpp("tokens"),
    "HYB-04": lambda: llama_cpp("state"),
    "HYB-05": vllm_with_prefix_caching,
    "HYB-06": vllm_019,
    "HYB-07": sparse_with_draft_layers,
    "HYB-11": draft_head,
    "HYB-12": lambda: gemma_4(4096),
    "HYB-13": lambda: gemma_4(131072),
}
"""The plan's number of every exact row, in the unit of the row."""
PAGE = Path(__file__).parents[2] / "docs" / "hybrid-caches.md"
_HEAD = """# Caches of hybrid models: logged and planned

For anyone who plans a model whose layers cache different things (windows, states, latents): what engines logged,
and what the plan gives for the same setting. Generated by `python -m tests.validation.hybrid_caches` from
[the rows](../planners/evidence/hybrid_caches.csv); a test computes every planned number again.

"""


def page() -> str:
    """The page: every row with its source, the logged number, the planned one, and the rule or the reason why not."""
    columns = (
        "row",
        "source",
        "engine",
        "model, setting",
        "quantity",
        "logged",
        "planned",
        "rule, or why there is none",
    )
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in ROWS]
    exact = sum(row["status"] == "exact" for row in ROWS)
    total = f"Of {len(ROWS)} rows {exact} are planned to the byte, token or printed digit. The rest has no public rule."
    return _HEAD + "\n".join((*lines, "", total, ""))


def _cells(row: Row) -> tuple[str, ...]:
    logged = f"{row['value']} {row['unit']}"
    decimals = len(row["value"].partition(".")[2])
    planned = f"{PLANNED[row['id']]():.{decimals}f} {row['unit']}" if row["id"] in PLANNED else "none"
    what = f"{row['model']}, {row['setting']}"
    return row["id"], _linked(row["source"]), row["engine"], what, row["quantity"], logged, planned, row["law"]


def _linked(source: str) -> str:
    """A link to the issue that `owner/repository#number` names; other sources as they are."""
    repository, _, number = source.partition("#")
    is_issue = number.isdecimal() and repository.count("/") == 1 and " " not in repository
    return f"[{source}](https://github.com/{repository}/issues/{number})" if is_issue else source


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
