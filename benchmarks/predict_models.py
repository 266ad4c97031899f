"""Random models and workloads with which predictions of time are compared: all attentions, masks and feed-forwards.

A seed gives the same models everywhere. Models that would take too much time or memory are drawn again.
"""

import random
from dataclasses import dataclass
from typing import Any

import l4spec
from l4spec.graph.layer_graph import LayerGraph
from l4spec.layers.declaration import Work
from planners.counts.params import count_params
from planners.module.executed import executed_flops

HIDDEN = (256, 384, 512, 640, 768, 1024, 1280, 1536, 2048)
MOST_PARAMETERS = 350_000_000
MOST_FLOPS = 6e11
"""Of one prefill: a few seconds on two cores."""
DECODE_STEPS = 16


@dataclass(frozen=True, slots=True)
class Trial:
    """A model with a workload: `batch` prompts of `prompt` tokens, then single tokens."""

    number: int
    what: str
    graph: LayerGraph
    batch: int
    prompt: int

    @property
    def prefill(self) -> Work:
        """All prompts at once, logits of their last tokens."""
        return Work(self.batch, self.prompt, num_logits=1)

    def decode(self, step: int) -> Work:
        """The step whose token follows `step` generated ones."""
        return Work(self.batch, 1, self.prompt + step, phase="decode", num_logits=1)


def trials(seed: int, count: int) -> list[Trial]:
    """The first `count` models of a seed."""
    draw = random.Random(seed)
    drawn: list[Trial] = []
    while len(drawn) < count:
        data, what = _model(draw, f"random-{seed}-{len(drawn)}")
        batch, prompt = draw.choice((1, 1, 2, 3, 4, 8)), round(2 ** draw.uniform(5, 11))
        graph = l4spec.compile(l4spec.ModelSpec.model_validate(data))
        trial = Trial(len(drawn), what, graph, batch, prompt)
        small = count_params(graph).total <= MOST_PARAMETERS
        if small and executed_flops(graph, trial.prefill) <= MOST_FLOPS:
            drawn.append(trial)
    return drawn


def _model(draw: random.Random, name: str) -> tuple[dict[str, Any], str]:
    hidden, layers = draw.choice(HIDDEN), draw.randint(2, 12)
    attention, described = _attention(draw, hidden)
    masks = draw.choice((("causal",), ("chunked", "causal"), ("sliding_window", "causal"), ("chunked",)))
    size = draw.choice((64, 128, 256, 512))
    parts: dict[str, Any] = {mask: attention | {"mask": _mask(mask, size)} for mask in masks}
    ffns = draw.choice((("dense",), ("dense",), ("moe",), ("dense", "moe")))
    parts |= {ffn: _dense(draw, hidden) if ffn == "dense" else _moe(draw, hidden) for ffn in ffns}
    blocks = [{"attention": masks[i % len(masks)], "ffn": ffns[i % len(ffns)]} for i in range(layers)]
    text = {
        "hidden_size": hidden,
        "vocab_size": draw.choice((2048, 8192, 16000, 32000)),
        "max_seq_len": 4096,
        "dtype": "fp32",
        "tie_embeddings": draw.random() < 0.5,
        "norm": {"kind": draw.choice(("rmsnorm", "rmsnorm", "layernorm")), "eps": 1e-5},
        "parts": parts,
        "layers": blocks,
    }
    what = f"{described}, {'+'.join(masks)} {size if len(masks) > 1 or masks[0] != 'causal' else ''}".strip()
    return {"l4spec": 1, "name": name, "text": text}, f"{what}, {'+'.join(ffns)}, hidden {hidden}, {layers} layers"


def _mask(kind: str, size: int) -> dict[str, Any]:
    return {"kind": kind} if kind == "causal" else {"kind": kind, "size": size}


def _attention(draw: random.Random, hidden: int) -> tuple[dict[str, Any], str]:
    rope = {"kind": "rope", "theta": 10000.0, "layout": draw.choice(("interleaved", "half"))}
    if draw.random() < 0.25:
        nope, turned = draw.choice(((32, 32), (64, 32), (128, 64)))
        mla = {
            "kind": "mla",
            "num_heads": max(2, hidden // 128),
            "q_lora_rank": draw.choice((None, hidden // 2)),
            "kv_lora_rank": draw.choice((64, 128, 256)),
            "qk_nope_head_dim": nope,
            "qk_rope_head_dim": turned,
            "v_head_dim": nope,
            "norm_eps": 1e-6,
            "position": rope,
        }
        return mla, "mla"
    head_dim = draw.choice((32, 64, 128))
    kv_heads = draw.choice((1, 2, 4))
    norm = draw.choice((None, None, {"kind": "l2"}, {"kind": "rmsnorm", "eps": 1e-6}))
    gqa = {
        "kind": "gqa",
        "num_heads": max(kv_heads, hidden // head_dim // kv_heads * kv_heads),
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "position": draw.choice((rope, rope, {"kind": "none"})),
    }
    return gqa | ({"qk_norm": norm} if norm else {}), "gqa"


def _dense(draw: random.Random, hidden: int) -> dict[str, Any]:
    kind = draw.choice(("swiglu", "swiglu", "geglu", "mlp"))
    return {"kind": kind, "intermediate_size": round(hidden * draw.uniform(1.5, 4)) // 32 * 32}


def _moe(draw: random.Random, hidden: int) -> dict[str, Any]:
    shared = draw.choice((0, 1))
    return {
        "kind": "moe",
        "num_experts": draw.choice((4, 8, 16, 32)),
        "num_experts_per_token": draw.choice((1, 2, 4)),
        "intermediate_size": round(hidden * draw.uniform(0.25, 1.5)) // 32 * 32,
        "num_shared_experts": shared,
        "router": {"score": draw.choice(("sigmoid", "softmax")), "scales": draw.choice(("input", "output"))},
    }
