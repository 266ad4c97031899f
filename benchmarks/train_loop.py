"""Steps of the training loop of `l4spec train` on one rank: gradients' norm, clipping and loads included.

    python -m benchmarks.train_loop 128-experts-4-layers [--steps 5] [--tokens 1024] [--microbatches 1] [--threads 1]

Prints of each step its processor time, of it that of the system, the page faults, and the largest memory so far.
"""

import argparse
import resource
import time
from collections.abc import Iterator

import torch

import l4spec
from benchmarks.speed_models import spec_of
from l4spec.runtime.build import build
from l4spec.runtime.parallel.distribute import distribute
from l4spec.sharding.layout import Layout
from l4spec.spec.recipe.phase import OptimizerSpec
from l4spec.training.loop import LoopSettings, StepMetrics, TrainBatch, train_steps
from l4spec.training.optimizer import make_optimizer
from l4spec.training.run.synthetic import batch_of


def steps_of(name: str, num_steps: int, tokens: int, microbatches: int) -> Iterator[StepMetrics]:
    """Steps of a benchmark's model with random weights, of one sequence of `tokens` a microbatch."""
    graph = l4spec.compile(spec_of(name))
    model = distribute(build(graph, "meta", "fp32"), Layout(), device="cpu", train=True)
    optimizer = make_optimizer(model, OptimizerSpec(learning_rate=1e-4))

    def batch(step: int) -> TrainBatch:
        ids = batch_of(0, step, microbatches, tokens, graph.model.text.head.vocab_size)
        return TrainBatch(ids[:, :-1], ids[:, 1:])

    return train_steps(model, optimizer, batch, LoopSettings(num_steps, clip=1.0, microbatches=microbatches))


def main() -> None:
    """Print one line a step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    for option, usual in {"steps": 5, "tokens": 1024, "microbatches": 1, "threads": 1}.items():
        parser.add_argument(f"--{option}", type=int, default=usual)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    steps = steps_of(given.model, given.steps, given.tokens, given.microbatches)
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF)
    for done in steps:
        seconds, now = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF)
        print(
            f"step {done.step}  loss {done.loss:.9f}  norm {done.gradient_norm:.9f}  {seconds:.2f} s"
            f"  system {now.ru_stime - before.ru_stime:.2f} s  {now.ru_minflt - before.ru_minflt:,} page faults"
            f"  {now.ru_maxrss / 2**20:.2f} GiB",
            flush=True,
        )
        began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF)


if __name__ == "__main__":
    main()
