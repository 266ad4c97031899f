"""Writes trl_losses.json: what trl's own trainers compute from random log probabilities. Needs `pip install trl`.

    python tests/training/make_trl_losses.py

The trainers' loss functions are called as they are, on an object that has the attributes they read; only the model's
forward pass is replaced by the log probabilities at hand.
"""

import json
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROWS, TOKENS, MOST = 6, 5, 8
BETA = 0.1
SETTINGS: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo", "beta": 0.0},
    "grpo with kl": {"loss_type": "grpo", "beta": 0.04},
    "dr_grpo": {"loss_type": "dr_grpo", "beta": 0.0},
}


class Anything(SimpleNamespace):
    """Has every attribute; those that were not given are false or zero."""

    def __getattr__(self, name: str) -> Any:
        return 0 if name != "args" else Anything(delta=None)


class Outputs(SimpleNamespace):
    """What a model's forward pass returns; what was not given is zero."""

    def __getattr__(self, name: str) -> Any:
        return torch.zeros(ROWS, TOKENS, dtype=torch.bool if name.startswith("is_") else torch.float32)


def inputs() -> dict[str, torch.Tensor]:
    """Log probabilities of three policies, a mask of answers, rewards of two groups of three."""
    draw = torch.Generator().manual_seed(7)
    now = -torch.rand(ROWS, TOKENS, generator=draw)
    old, reference = (now + 0.4 * torch.randn(ROWS, TOKENS, generator=draw) for _ in range(2))
    mask = (torch.arange(TOKENS) < torch.tensor([5, 3, 4, 1, 2, 5])[:, None]).long()
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    return {"now": now, "old": old, "reference": reference, "mask": mask, "rewards": rewards}


def fake(now: torch.Tensor, **attributes: Any) -> Anything:
    """A trainer that scores every batch with `now`."""
    accelerator = SimpleNamespace(
        gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, **_: x, num_processes=1, device="cpu"
    )
    return Anything(
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, torch.zeros_like(now), None),
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        accelerator=accelerator,
        model=SimpleNamespace(training=True),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        epsilon_low=0.2,
        epsilon_high=0.28,
        current_gradient_accumulation_steps=1,
        max_completion_length=MOST,
        args=Anything(delta=None),
        **attributes,
    )


def dpo(given: dict[str, torch.Tensor]) -> float:
    """The loss of three pairs; trl has the chosen answers first, then the rejected, after one token of a prompt."""
    from trl.trainer.dpo_trainer import DPOTrainer

    mask = torch.cat([torch.zeros(ROWS, 1, dtype=torch.long), given["mask"]], dim=1)
    chosen, rejected = (given["reference"] * given["mask"]).sum(1).chunk(2)
    batch = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    batch |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    now = given["now"] * given["mask"]
    outputs = Outputs(log_probs=now, entropy=torch.zeros_like(now), entropies=torch.zeros_like(now))
    trainer = fake(
        now,
        precompute_ref_logps=True,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=BETA,
        _tp_size=1,
    )
    return float(DPOTrainer._compute_loss(trainer, lambda **_: outputs, batch, False))


def main() -> None:
    """Compute and write."""
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_trainer import RLOOTrainer

    given = inputs()
    rewards = given["rewards"].view(2, 3)
    centred = rewards - rewards.mean(1, keepdim=True)
    by_algorithm = {
        "grpo": centred / (rewards.std(1, keepdim=True) + 1e-4),
        "dr_grpo": centred,
        "reinforce": rewards - (rewards.sum(1, keepdim=True) - rewards) / 2,
    }
    ids = torch.zeros(ROWS, TOKENS, dtype=torch.long)
    batch = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1] + 1, "completion_ids": ids}
    batch |= {"completion_mask": given["mask"], "old_per_token_logps": given["old"]}
    batch |= {"ref_per_token_logps": given["reference"], "old_logps": (given["old"] * given["mask"]).sum(1)}
    losses = {}
    for name, setting in SETTINGS.items():
        advantages = by_algorithm[setting["loss_type"]].flatten()
        loss = GRPOTrainer._compute_loss(fake(given["now"], **setting), None, {**batch, "advantages": advantages})
        losses[name] = float(loss)
    advantages = by_algorithm["reinforce"].flatten()
    losses["reinforce"] = float(
        RLOOTrainer._compute_loss(fake(given["now"]), None, {**batch, "advantages": advantages})
    )
    data = {
        "trl": version("trl"),
        "most": MOST,
        "losses": losses,
        "beta": BETA,
        "dpo": dpo(given),
        **{key: x.tolist() for key, x in given.items()},
    }
    Path(__file__).with_name("trl_losses.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
