"""The reference models of transformers, small and wholly random, each with the same model as a spec of ours.

The bound on logits. Both sides compute the same mathematics in fp32, in other orders of summation. A sum of K products
has a rounding error of about sqrt(K) u relative to its deviation (u = 2^-24; errors of random sign: Higham and Mary,
SIAM J. Sci. Comput. 41(5), 2019). Each of the D contractions that a logit passes through adds its own, and norms keep
the stream at constant scale, so that errors add as a random walk too: sqrt(K D) u. Two independent errors differ by
sqrt(2) times one. The largest difference and the largest logit lie equally many deviations out, so the same factor
holds between them. Softmax, gates and norms amplify a little: the bound allows a factor of 2. In all
2 sqrt(2) sqrt(K D) u; with K = 72 and D = 25 that is 7.2e-6.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from l4spec.runtime.build import build
from l4spec.runtime.model import Model
from tests.runtime.tiny import Json, gqa, graph_of, moe, randomise, text_of

UNIT_ROUNDOFF = 2.0**-24
Split = Callable[[str, Tensor], dict[str, Tensor] | None]
"""A tensor under our name of its layer to what it holds by our names; None where it is one tensor."""
HIDDEN, VOCAB = 48, 97


@dataclass(frozen=True)
class Oracle:
    """A reference model and the spec that means the same; `widest` is its longest sum, for the bound.

    `split` takes apart tensors that only this family fuses, by our names. `amplification` is what a recurrence adds: it
    passes an error on from token to token, and solves a system in each chunk.
    """

    reference: Any
    text: Json
    num_layers: int
    vision: Json | None = None
    widest: int = 72
    split: "Split | None" = None
    amplification: float = 1.0

    @property
    def bound(self) -> float:
        """Largest difference of logits relative to the largest logit; see the module's docstring."""
        deepest = 6 * self.num_layers + 1
        return self.amplification * math.sqrt(8 * self.widest * deepest) * UNIT_ROUNDOFF

    def ours(self, dtype: str = "fp32") -> Model:
        """Our model with the reference's weights."""
        model = build(graph_of(self.text, self.vision), dtype=dtype, seed=None)
        load(model, self.reference, self.split)
        return model


@torch.no_grad()
def load(model: Model, reference: Any, split: Split | None = None) -> None:
    """Copy every tensor of the reference to its place; every place must be filled exactly once."""
    places = model.state_dict(keep_vars=True)
    tied = {name for name in ("lm_head.weight",) if reference.config.get_text_config().tie_word_embeddings}
    stored = ((name, tensor) for name, tensor in reference.state_dict().items() if name not in tied)
    for name, tensor in translated(stored, split):
        place = places.pop(name)
        assert place.shape == tensor.shape, f"{name}: {tuple(place.shape)} from {tuple(tensor.shape)}"
        place.copy_(tensor)
    assert not places, f"not in the reference: {sorted(places)}"


def translated(tensors: Iterable[tuple[str, Tensor]], split: Split | None = None) -> Iterator[tuple[str, Tensor]]:
    """The reference's tensors by our names; fused ones taken apart."""
    tensors = list(tensors)
    has_post_norms = any("post_feedforward_layernorm" in name for name, _ in tensors)
    is_interleaved = any(name.endswith("gate_up_proj_bias") for name, _ in tensors)
    for name, tensor in tensors:
        ours = name.replace("post_attention_layernorm", "attention_post_norm") if has_post_norms else name
        for pattern, replacement in _NAMES:
            ours = re.sub(pattern, replacement, ours)
        if split is not None and (parts := split(ours, tensor)) is not None:
            yield from parts.items()
            continue
        if is_interleaved and ".experts." in ours:
            yield from _of_gpt_oss(ours, tensor)
            continue
        if not ours.endswith("gate_up_proj"):
            yield ours, tensor.mT if ours.endswith("experts.down_proj") and "feed_forward" in name else tensor
            continue
        # Llama 4 stores experts as [experts, in, 2 * out], the others as [experts, 2 * out, in]; the gate comes first
        fused = tensor.mT if "feed_forward" in name else tensor
        gate, up = fused.chunk(2, dim=1)
        yield ours.replace("gate_up_proj", "gate_proj"), gate
        yield ours.replace("gate_up_proj", "up_proj"), up


def _of_gpt_oss(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Experts [experts, in, out] with biases [experts, out]; gate and up take turns along the outputs."""
    is_bias = name.endswith("_bias")
    tensor = tensor if is_bias else tensor.mT
    if "down_proj" in name:
        yield name.replace("down_proj_bias", "down_bias"), tensor
        return
    for first, part in enumerate(("gate", "up")):
        ours = name.replace(
            "gate_up_proj_bias" if is_bias else "gate_up_proj", f"{part}_{'bias' if is_bias else 'proj'}"
        )
        yield ours, tensor[:, first::2]


_NAMES = (
    (r"^language_model\.", ""),
    (r"^model\.embed_tokens", "text.embedding"),
    (r"^model\.norm\.", "text.norm."),
    (r"^lm_head\.", "text.head."),
    (r"^model\.layers", "text.layers"),
    (r"^vision_model\.class_embedding", "vision.patch_embedding.class_token"),
    (r"^vision_model\.positional_embedding_vlm", "vision.position.weight"),
    (r"^vision_model\.patch_embedding\.linear", "vision.patch_embedding.proj"),
    (r"^vision_model\.layernorm_pre", "vision.pre_norm"),
    (r"^vision_model\.layernorm_post", "vision.post_norm"),
    (r"^vision_model\.model\.layers", "vision.layers"),
    (r"^vision_model\.vision_adapter\.mlp", "vision.adapter"),
    (r"^multi_modal_projector\.linear_1", "vision.projector.proj"),
    (r"\.(self_attn|linear_attn)\.", ".attention."),
    (r"\.attention\.g_proj\.", ".attention.gate_proj."),
    (r"\.(feed_forward|mlp|block_sparse_moe)\.", ".ffn."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.pre_feedforward_layernorm\.", ".ffn_norm."),
    (r"\.pre_feedforward_layernorm_2\.", ".second_ffn.input_norm."),
    (r"\.post_feedforward_layernorm_1\.", ".ffn_inner_norm."),
    (r"\.post_feedforward_layernorm_2\.", ".second_ffn_inner_norm."),
    (r"\.layer_scalar$", ".ffn_add.factor"),
    (r"^(text\.layers\.\d+)\.(router|experts)\.", r"\1.second_ffn.\2."),
    (r"\.router\.proj\.", ".router."),
    (r"\.router\.scale$", ".router.norm.weight"),
    (r"\.router\.per_expert_scale$", ".router.expert_scale"),
    (r"\.post_feedforward_layernorm\.", ".ffn_post_norm."),
    (r"\.q_a_layernorm\.", ".q_a_norm."),
    (r"\.kv_a_layernorm\.", ".kv_a_norm."),
    (r"\.kv_a_proj_with_mqa\.", ".kv_a_proj."),
    (r"\.ffn\.gate\.weight", ".ffn.router.weight"),
    (r"\.ffn\.(gate\.)?e_score_correction_bias", ".ffn.router.correction_bias"),
    (r"\.shared_experts\.", ".shared_expert."),
    (r"\.indexer\.wq_b\.", ".index_q_proj."),
    (r"\.indexer\.wk\.", ".index_k_proj."),
    (r"\.indexer\.", ".index_"),
    (r"^(vision\..*\.ffn)\.fc1", r"\1.up_proj"),
    (r"^(vision\..*\.ffn)\.fc2", r"\1.down_proj"),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
)
"""Patterns, applied in turn."""


def _random(reference: Any, seed: int) -> Any:
    randomise(reference, seed)
    return reference.eval()


def _common(num_layers: int) -> Json:
    return {
        "hidden_size": HIDDEN,
        "vocab_size": VOCAB,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "attn_implementation": "eager",
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }


_LLAMA4_SCALING: Json = {
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
}


def llama4_text_config(num_layers: int, chunk: int, *, qk_norm: bool, interleave: int) -> Any:
    """A Llama 4 text configuration with rope scaling and a small temperature floor."""
    return transformers.Llama4TextConfig(
        **_common(num_layers),
        intermediate_size=40,
        intermediate_size_mlp=72,
        num_local_experts=6,
        num_experts_per_tok=1,
        interleave_moe_layer_step=interleave,
        use_qk_norm=qk_norm,
        no_rope_layer_interval=4,
        attention_chunk_size=chunk,
        attn_temperature_tuning=True,
        floor_scale=4,
        attn_scale=0.1,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "original_max_position_embeddings": 64,
            **_LLAMA4_SCALING,
        },
    )


def llama4_spec(num_layers: int, chunk: int, *, qk_norm: bool, interleave: int) -> Json:
    """The same as a spec."""
    rope = {
        "kind": "rope",
        "theta": 500000.0,
        "layout": "interleaved",
        "scaling": {"kind": "llama3", "original_max_seq_len": 64, **_LLAMA4_SCALING},
    }
    local = gqa(
        mask={"kind": "chunked", "size": chunk}, position=rope, qk_norm={"kind": "l2", "eps": 1e-5} if qk_norm else None
    )
    parts = {
        "local": local,
        "global": gqa(temperature={"floor_scale": 4, "attn_scale": 0.1}),
        "moe": moe(num_experts_per_token=1, num_shared_experts=1),
        "dense": {"kind": "swiglu", "intermediate_size": 72},
    }
    layers = [
        {
            "attention": "global" if index % 4 == 3 else "local",
            "ffn": "moe" if index % interleave == interleave - 1 else "dense",
        }
        for index in range(num_layers)
    ]
    return text_of(parts, layers)


def llama4(chunk: int = 8, *, qk_norm: bool = True, interleave: int = 1, seed: int = 0) -> Oracle:
    """Llama4ForCausalLM of four layers: three local, one global."""
    config = llama4_text_config(4, chunk, qk_norm=qk_norm, interleave=interleave)
    reference = _random(transformers.Llama4ForCausalLM(config), seed)
    return Oracle(reference, llama4_spec(4, chunk, qk_norm=qk_norm, interleave=interleave), 4)


PATCH_TOKEN = 90


def llama4_vision(seed: int = 0) -> Oracle:
    """Llama4ForConditionalGeneration: a tower of two layers on tiles of 4 x 4 patches, and two text layers."""
    vision_config = transformers.Llama4VisionConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=16,
        patch_size=4,
        pixel_shuffle_ratio=0.5,
        projector_input_dim=40,
        projector_output_dim=40,
        vision_output_dim=40,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    text_config = llama4_text_config(4, 8, qk_norm=True, interleave=2)
    config = transformers.Llama4Config(
        vision_config=vision_config, text_config=text_config, image_token_index=PATCH_TOKEN
    )
    config._attn_implementation = "eager"
    reference = _random(transformers.Llama4ForConditionalGeneration(config), seed)
    return Oracle(reference, llama4_spec(4, 8, qk_norm=True, interleave=2), 4 + 2 + 1, _vision_spec(), widest=128)


def _vision_spec() -> Json:
    attention = gqa(
        num_heads=2,
        num_kv_heads=2,
        qkv_bias=True,
        output_bias=True,
        mask={"kind": "none"},
        position={"kind": "rope_2d", "theta": 10000.0},
    )
    tower = {
        "hidden_size": 32,
        "norm": {"kind": "layernorm", "eps": 1e-5},
        "class_token": "last",
        "learned_positions": True,
        "pre_layernorm": True,
        "parts": {"attention": attention, "ffn": {"kind": "mlp", "intermediate_size": 128}},
        "layers": [{"attention": "attention", "ffn": "ffn", "repeat": 2}],
    }
    adapter = {"kind": "pixel_shuffle_mlp", "pixel_shuffle_ratio": 0.5, "intermediate_size": 40, "output_size": 40}
    projector = {"kind": "linear", "output_size": HIDDEN}
    sizes = {"image_size": 16, "patch_size": 4, "max_tiles": 4, "global_tile": True}
    return {**sizes, "tower": tower, "adapter": adapter, "projector": projector}
