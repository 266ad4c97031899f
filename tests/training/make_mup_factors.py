"""Writes mup_factors.json: what the package mup makes of a network that is widened. Needs `pip install mup`.

    python tests/training/make_mup_factors.py

For each tensor the factor on its initial deviation times any factor on its product, and that on its learning rate
times the same, and on decoupled decay: the three numbers that a training run sees.
"""

import json
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

WIDTHS, BASE, VOCAB, EXPERTS = (1, 2, 8), 16, 11, 4


class Net(nn.Module):
    """The tensors of a block by the shapes that ours have: [out, in]."""

    def __init__(self, width: int) -> None:
        from mup import MuReadout

        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.up_proj = nn.Linear(width, 3 * width, bias=False)
        self.down_proj = nn.Linear(3 * width, width, bias=False)
        self.router = MuReadout(width, EXPERTS, bias=False)
        self.head = MuReadout(width, VOCAB, bias=False)


def deviation(tensor: Tensor) -> float:
    """What mup's normal initialization multiplies a draw by."""
    from mup.init import normal_

    torch.manual_seed(0)
    normal_(tensor, 0.0, 1.0)
    scaled = tensor.detach().clone()
    torch.manual_seed(0)
    plain = nn.init.normal_(torch.empty(tensor.shape))
    return float((scaled / plain).median())


def main() -> None:
    """Compute and write."""
    from mup import MuAdamW, set_base_shapes

    factors: dict[str, dict[str, list[float]]] = {}
    for times in WIDTHS:
        net = Net(BASE * times)
        set_base_shapes(net, Net(BASE), delta=Net(2 * BASE), rescale_params=False)
        optimizer = MuAdamW(net.parameters(), lr=1.0, weight_decay=1.0)
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        row = {}
        for name, parameter in net.named_parameters():
            group = groups[id(parameter)]
            forward = 1 / times if name.startswith(("router", "head")) else 1.0  # MuReadout's factor on its product
            scale = 1.0 if name.startswith("norm") else deviation(parameter)
            row[name] = [scale * forward, group["lr"] * forward, group["weight_decay"]]
        factors[str(times)] = row
    text = json.dumps({"mup": version("mup"), "factors": factors}, indent=1)
    Path(__file__).with_name("mup_factors.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
