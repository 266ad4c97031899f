"""Expert balance in training: load over all ranks and microbatches, router biases, detection of collapse."""

import math
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from l4spec.layers.common.parallel import sum_over
from l4spec.layers.moe.balance import moved_bias
from l4spec.layers.moe.module import MoE
from l4spec.layers.moe.spec import MoESpec
from l4spec.runtime.model import Model
from l4spec.runtime.parallel.model import RankModel

WINDOW = 50
"""Steps over which the detector averages loads: it warns within twice as many of a collapse."""
COLLAPSED_SHARE = 0.4
"""Effective experts below this share of all are a collapse; even choices of 512 tokens give 0.99 of 8 experts."""


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """Choices that came to each expert of one layer, and how many found no room (`capacity_factor`)."""

    counts: tuple[float, ...]
    dropped: float = 0.0

    @property
    def shares(self) -> tuple[float, ...]:
        """Each expert's share of all choices."""
        total = sum(self.counts)
        return tuple(count / total for count in self.counts) if total else (1 / len(self.counts),) * len(self.counts)

    @property
    def entropy(self) -> float:
        """-sum f log f in nats; log(experts) where all are used alike."""
        return -sum(share * math.log(share) for share in self.shares if share)

    @property
    def effective_experts(self) -> float:
        """exp(entropy): as many equally used experts have this entropy."""
        return math.exp(self.entropy)

    @property
    def max_over_mean(self) -> float:
        """The busiest expert's choices, relative to an equal share."""
        return max(self.shares) * len(self.counts)

    def as_json(self) -> dict[str, object]:
        """The row of a metrics file."""
        return {
            "load": [round(share, 5) for share in self.shares],
            "entropy": round(self.entropy, 5),
            "effective_experts": round(self.effective_experts, 4),
            "max_over_mean": round(self.max_over_mean, 4),
            "dropped": int(self.dropped),
        }


class RoutingLog:
    """Records the load of a model's mixtures in training; `finish` returns that since its last call, over all ranks."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.widths = {node.id: node.spec.num_experts for node in model.graph.nodes if isinstance(node.spec, MoESpec)}
        self.of_modules = {node.id for node in model.module_nodes}
        """Mixtures that run in steps of multi-token prediction alone."""
        self.own: dict[str, Tensor] = {}
        model.record = self._record if self.widths else None

    def _record(self, node_id: str, counts: Tensor, dropped: Tensor) -> None:
        row = torch.cat((counts, dropped[None])).double()
        self.own[node_id] = self.own[node_id] + row if node_id in self.own else row

    def finish(self) -> dict[str, LayerLoad]:
        """Loads by the layers' node ids, in order. All ranks must call it, for they add up what they counted."""
        if not self.widths:
            return {}
        empty = {node: torch.zeros(width + 1, dtype=torch.float64) for node, width in self.widths.items()}
        flat = torch.cat([self.own.get(node, empty[node]).to(self.model.device) for node in self.widths])
        self.own = {}
        if isinstance(self.model, RankModel):
            flat = sum_over(sum_over(flat, self.model.mesh.data), self.model.mesh.axis("pp"))
        rows = torch.split(flat, [width + 1 for width in self.widths.values()])
        loads = {node: _load_of(row.tolist()) for node, row in zip(self.widths, rows, strict=True)}
        return {node: load for node, load in loads.items() if any(load.counts) or node not in self.of_modules}


def _load_of(row: list[float]) -> LayerLoad:
    return LayerLoad(tuple(row[:-1]), row[-1])


@torch.no_grad()
def move_biases(model: Model, loads: Mapping[str, LayerLoad]) -> None:
    """Move the correction biases of mixtures with a `bias_update` by a step's loads, which all ranks know."""
    for module in model.modules():
        if isinstance(module, MoE) and module.spec.balance is not None and module.spec.balance.bias_update is not None:
            bias = module.router.correction_bias
            assert bias is not None, "the spec demands one"
            if not module.router.weight.requires_grad:
                continue  # a frozen router's choices stay
            load = torch.tensor(loads[module.node_id].counts, device=bias.device)
            bias.copy_(moved_bias(bias, load, module.spec.balance.bias_update))


class CollapseDetector:
    """Warns, once per layer, when the mean load of the last steps leaves few experts in use."""

    def __init__(self, window: int = WINDOW, share: float = COLLAPSED_SHARE) -> None:
        self.window, self.share = window, share
        self.recent: dict[str, deque[tuple[float, ...]]] = defaultdict(lambda: deque(maxlen=self.window))
        self.warned: set[str] = set()

    def warnings(self, step: int, loads: Mapping[str, LayerLoad]) -> Iterator[str]:
        """Warnings of this step."""
        for node, load in loads.items():
            self.recent[node].append(load.shares)
            if node in self.warned or len(self.recent[node]) < self.window:
                continue
            mean = LayerLoad(tuple(sum(column) / self.window for column in zip(*self.recent[node], strict=True)))
            if mean.effective_experts < self.share * len(mean.counts):
                self.warned.add(node)
                yield (
                    f"routing collapse in {node} at step {step}: {mean.effective_experts:.1f} of {len(mean.counts)} "
                    f"experts in effect over the last {self.window} steps; balance it (auxiliary_loss, bias_update "
                    f"or expert_choice of the part's `balance`)"
                )
