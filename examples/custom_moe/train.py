"""Train a mixture of experts written in YAML: plan it, build it, train it, see its routing, save it and read it back.

    python examples/custom_moe/train.py

About 20 seconds on one CPU core. Nothing is downloaded: the text comes from `grammar.py`.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import grammar
import torch
from torch import Tensor

import l4spec
import planners
from l4spec.layers.moe.router import Router
from l4spec.runtime.model import Model

SPEC = Path(__file__).with_name("balanced-moe.yaml")
BATCH, TOKENS = 8, 96
LEARNING_RATE = 3e-3
BIAS_STEP = 0.005
"""Size of a correction bias's update after each step (DeepSeek-V3, arXiv:2412.19437, section 2.1.2: 0.001)."""
BAR = 40
Listener = Callable[[torch.nn.Module, object, tuple[Tensor, Tensor]], None]


class Loads:
    """Counts how many tokens each expert of each layer was given, by listening to the routers."""

    def __init__(self, model: Model) -> None:
        self.routers = {name.removesuffix(".router"): m for name, m in model.named_modules() if isinstance(m, Router)}
        self.counts: dict[str, Tensor] = {}
        for name, router in self.routers.items():
            router.register_forward_hook(self._listener(name, router.spec.num_experts))
        self.reset()

    def reset(self) -> None:
        """Count from zero again."""
        self.counts = {name: torch.zeros(m.spec.num_experts, dtype=torch.long) for name, m in self.routers.items()}

    def balance(self) -> None:
        """Make experts that got more than their share less attractive, and the others more, by a fixed step."""
        for name, router in self.routers.items():
            load = self.counts[name].float()
            assert router.correction_bias is not None
            router.correction_bias += BIAS_STEP * torch.sign(load.mean() - load)

    def _listener(self, name: str, num_experts: int) -> Listener:
        def listen(router: torch.nn.Module, inputs: object, output: tuple[Tensor, Tensor]) -> None:
            self.counts[name] += output[1].flatten().bincount(minlength=num_experts)

        return listen


def batches(seed: int) -> Iterator[Tensor]:
    """Token ids [BATCH, TOKENS + 1], each row a piece of an endless text of its own."""
    rows = [grammar.stories(seed * BATCH + row) for row in range(BATCH)]
    while True:
        yield torch.tensor([list(islice(row, TOKENS + 1)) for row in rows])


def loss_of(model: Model, ids: Tensor) -> Tensor:
    """Cross-entropy of every next token, in nats."""
    logits = model(ids[:, :-1])
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def train(model: Model, loads: Loads, num_steps: int) -> list[float]:
    """AdamW with a cosine schedule; returns the loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    losses = []
    model.train()
    for step, ids in enumerate(islice(batches(seed=1), num_steps)):
        loads.reset()
        loss = loss_of(model, ids)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        loads.balance()
        losses.append(loss.item())
        if step % max(1, num_steps // 10) == 0 or step == num_steps - 1:
            print(f"  step {step + 1:3}  loss {loss.item():.3f}")
    model.eval()
    return losses


def histogram(loads: Loads) -> str:
    """A bar per expert of each layer: its share of the tokens, `|` where an equal share would end."""
    lines = []
    for name, counts in loads.counts.items():
        shares = (counts / counts.sum()).tolist()
        entropy = -sum(share * math.log(share) for share in shares if share) / math.log(len(shares))
        lines.append(f"{name}  (balance {entropy:.3f} of 1)")
        for expert, share in enumerate(shares):
            bar = "█" * round(share * BAR * 2)
            equal = round(BAR * 2 / len(shares))
            lines.append(f"  expert {expert}  {share:6.1%}  {bar.ljust(equal)[:equal]}|{bar[equal:]}")
    return "\n".join(lines)


def describe(graph: l4spec.LayerGraph) -> None:
    """Print what the plan says before anything is built."""
    plan = planners.plan(graph, mode="train", batch=BATCH, context=TOKENS)
    memory = plan.memory_per_device
    print(f"{graph.name}: {graph.num_layers} layers")
    print(f"  parameters       {plan.params.total:,}, {plan.params.active:,} of them active per token")
    print(f"  one step         {plan.flops.train_step / 1e9:.2f} GFLOP for {BATCH} x {TOKENS} tokens")
    print(f"  memory to train  {memory.total_bytes / 2**20:.1f} MiB")


def check_checkpoint(model: Model, folder: Path) -> None:
    """Save the model, read it back from the folder alone, and compare the logits bit by bit."""
    saved = l4spec.save_checkpoint(model, folder)
    print(f"saved {saved.num_tensors} tensors, {saved.num_bytes / 2**20:.1f} MiB, to {folder}")
    again = l4spec.build(l4spec.compile(l4spec.load(folder / "spec.yaml")), seed=None)
    l4spec.load_checkpoint(again, folder)
    ids = next(batches(seed=3))
    with torch.no_grad():
        if not torch.equal(model(ids), again(ids)):
            sys.exit("the model that was read back gives other logits")
    print("read back: equal logits")


def main() -> None:
    """Everything, in order; ends with an error if the loss does not fall as far as it should."""
    options = parse_options()
    torch.manual_seed(0)
    graph = l4spec.compile(l4spec.load(SPEC))
    describe(graph)
    model = l4spec.build(graph)
    num_built = sum(parameter.numel() for parameter in model.parameters())
    print(f"built: {num_built:,} parameters\ntraining {options.steps} steps")
    loads, start = Loads(model), time.perf_counter()
    losses = train(model, loads, options.steps)
    print(f"  {time.perf_counter() - start:.1f} seconds")
    if losses[-1] > options.target * losses[0]:
        sys.exit(f"the loss fell from {losses[0]:.3f} to {losses[-1]:.3f}, not to {options.target} of it")
    loads.reset()
    with torch.no_grad():
        for ids in islice(batches(seed=2), 8):
            loss_of(model, ids)
    print(f"\nwhere tokens of unseen text went\n{histogram(loads)}\n")
    beginning = "<story> there is a green owl in the forest . then"
    generated = model.generate([grammar.ids_of(beginning)], max_new_tokens=24)
    print(f"{grammar.text_of(generated[0])} …\n")
    with tempfile.TemporaryDirectory() as folder:
        check_checkpoint(model, options.out or Path(folder) / "checkpoint")


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="training steps (default 200)")
    parser.add_argument("--target", type=float, default=0.4, help="share of the first loss to reach (default 0.4)")
    parser.add_argument("--out", type=Path, help="keep the checkpoint in this new folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
