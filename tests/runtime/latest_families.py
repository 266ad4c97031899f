"""Oracles of families of 2026 whose layers differ in more than their mask."""

from types import SimpleNamespace
from typing import Any

import transformers
from torch import Tensor, nn
from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel

from tests.runtime.newer_families import DENSE, WINDOW
from tests.runtime.oracles import HIDDEN, Oracle, _common, _random
from tests.runtime.tiny import ROPE, Json, gqa, moe, text_of


class WithHead(nn.Module):
    """A body of transformers, of which it has no class with a head alone, and the head beside it."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.model, self.config = body, body.config
        self.lm_head = nn.Linear(body.config.hidden_size, body.config.vocab_size, bias=False)

    def forward(self, input_ids: Tensor, **others: Any) -> SimpleNamespace:
        """Logits, as an attribute of that name."""
        return SimpleNamespace(logits=self.lm_head(self.model(input_ids=input_ids, **others).last_hidden_state))


def step3p7(seed: int = 0) -> Oracle:
    """Step3p7TextModel: gates for each head, windows of eight heads beside four, rotations of their own."""
    by_layer: Json = {
        "moe_layers_enum": "1,2,3",
        "rope_theta": [1e6, 1e4, 1e4, 1e6],
        "partial_rotary_factors": [0.5, 1.0, 1.0, 0.5],
    }
    config = transformers.Step3p7TextConfig(
        **(_common(4) | {"pad_token_id": 0} | by_layer),
        intermediate_size=64,
        moe_intermediate_size=40,
        share_expert_dim=24,
        n_routed_experts=6,
        num_experts_per_tok=2,
        moe_router_scaling_factor=3.0,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        num_sliding_attention_heads=8,
        sliding_window=6,
        rms_norm_eps=1e-6,
    )
    norm: Json = {"kind": "rmsnorm", "eps": 1e-6, "unit_offset": True}
    others: Json = {"qk_norm": norm, "output_gate": "headwise"}
    experts = moe(
        num_experts=6,
        num_experts_per_token=2,
        num_shared_experts=1,
        shared_intermediate_size=24,
        router={"score": "sigmoid", "renormalize": True, "correction_bias": True, "scaling_factor": 3.0},
    )
    far: Json = {"kind": "rope", "theta": 1e6, "rotary_dim": 8}
    local = gqa(num_heads=8, mask=WINDOW, position=ROPE, **others)
    parts = {"full": gqa(position=far, **others), "local": local, "dense": DENSE, "moe": experts}
    layers: list[Json] = [
        {"attention": "full", "ffn": "dense"},
        {"attention": "local", "ffn": "moe", "repeat": 2},
        {"attention": "full", "ffn": "moe"},
    ]
    reference = _random(WithHead(Step3p7TextModel(config)), seed)
    return Oracle(reference, text_of(parts, layers, norm=norm), 4, widest=128)


def gemma4(seed: int = 0, *, experts: bool = True) -> Oracle:
    """Gemma4ForCausalLM: values from keys and a share of turned pairs in full layers, experts beside a dense layer."""
    mixture: Json = {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 40}
    whole: Json = {"global_head_dim": 24, "num_global_key_value_heads": 1, "attention_k_eq_v": True}
    common = _common(4) | {"tie_word_embeddings": True, "pad_token_id": 0}
    config = transformers.Gemma4TextConfig(
        **(common | whole | (mixture if experts else {})),
        intermediate_size=64,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
        sliding_window=6,
        hidden_size_per_layer_input=0,
        use_bidirectional_attention="vision",
        final_logit_softcapping=3.0,
    )
    norm: Json = {"kind": "rmsnorm", "eps": 1e-6}
    others: Json = {"scale": 1.0, "qk_norm": norm, "value_norm": {"eps": 1e-6}}
    far: Json = {"kind": "rope", "theta": 1e6, "scaling": {"kind": "proportional", "share": 0.25}}
    part = moe(
        activation="gelu_tanh",
        input_norm={"eps": 1e-6},
        router={"score": "softmax", "renormalize": True, "norm": {"eps": 1e-6}, "expert_scale": True},
    )
    parts = {
        "local": gqa(mask=WINDOW, position=ROPE, **others),
        "global": gqa(head_dim=24, num_kv_heads=1, position=far, values_from_keys=True, **others),
        "dense": {"kind": "geglu", "intermediate_size": 64},
        **({"moe": part} if experts else {}),
    }
    more: Json = {"ffn": "dense", "form": "sandwich", "output_scale": True, "repeat": 2}
    more |= {"second_ffn": "moe"} if experts else {}
    text = text_of(
        parts,
        [{"attention": name, **more} for name in ("local", "global")],
        norm=norm,
        tie_embeddings=True,
        embedding_scale=HIDDEN**0.5,
        logit_softcap=3.0,
    )
    return Oracle(_random(transformers.Gemma4ForCausalLM(config), seed), text, 4, widest=96)


LATEST_FAMILIES: dict[str, Any] = {
    "step3p7": step3p7,
    "gemma4": gemma4,
    "gemma4 dense": lambda: gemma4(experts=False),
}
