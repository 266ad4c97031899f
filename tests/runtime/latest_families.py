"""Oracles of families of 2026 whose layers differ in more than their mask."""

from types import SimpleNamespace
from typing import Any

import transformers
from torch import Tensor, nn
from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel

from tests.runtime.newer_families import DENSE, WINDOW
from tests.runtime.oracles import Oracle, _common, _random
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


LATEST_FAMILIES: dict[str, Any] = {"step3p7": step3p7}
