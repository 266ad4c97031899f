"""Worker of `l4spec run`: every rank builds its part, loads, trains, saves and logs."""

import os
import time
from pathlib import Path

import torch

from l4spec.runtime.build import build
from l4spec.runtime.parallel.checkpoints import load_sharded, save_hub
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.run.task import Log, Store
from l4spec.spec.recipe.phase import OptimizerSpec
from l4spec.training.checkpoints import latest_step, load_step, save_step
from l4spec.training.loop import LoopSettings, TrainBatch, train_steps
from l4spec.training.optimizer import make_optimizer
from l4spec.training.run.job import PROMPT_TOKENS, Job
from l4spec.training.run.synthetic import batch_of


def work(job: Job, log: Log, store: Store) -> None:
    """One rank's part of a run; `log` prints a line on rank 0 and nothing elsewhere."""
    checkpoint = latest_step(job.checkpoint) if job.resume else None
    is_filled = checkpoint is not None or job.weights is not None
    empty = build(job.graph, "meta", job.number_format)
    device = _own_device(job.device)
    model = distribute(
        empty,
        job.layout,
        device=device,
        seed=None if is_filled else job.seed,
        train=job.steps > 0,
        sequence_parallel=job.sequence_parallel,
    )
    model.checkpointing = job.checkpointing
    optimizer = make_optimizer(model, OptimizerSpec(learning_rate=job.learning_rate)) if job.steps else None
    start = _load(job, model, optimizer, checkpoint, log)
    if optimizer is not None:
        train(job, model, optimizer, start, log)
    if job.out is not None:
        saved = save_hub(model, job.out)
        log(f"wrote {saved.num_tensors} tensors to {job.out} in the layout {saved.layout}")
    if job.generate:
        _generate(job, model, log)


def _own_device(device: str) -> torch.device:
    if device != "cuda":
        return torch.device(device)
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    return own


def _load(
    job: Job, model: RankModel, optimizer: torch.optim.Optimizer | None, checkpoint: Path | None, log: Log
) -> int:
    """Load the model from its checkpoint or weights, if given; returns the number of completed steps."""
    if checkpoint is not None:
        step = load_step(checkpoint, model, optimizer, job.continued() if job.steps else {}, verify=job.verify)
        log(f"resumed from {checkpoint} after step {step}")
        return step
    if job.weights is not None:
        load_sharded(model, job.weights, verify=job.verify)
        log(f"loaded {job.weights}")
    return 0


def train(job: Job, model: RankModel, optimizer: torch.optim.Optimizer, start: int, log: Log) -> None:
    """Train from step `start` to the job's last, with checkpoints at its interval and at the end."""

    def batch_at(step: int) -> TrainBatch:
        ids = batch_of(job.seed, step, job.batch, job.context, job.model_spec.text.vocab_size)
        return TrainBatch(ids[:, :-1], ids[:, 1:])

    for done in train_steps(model, optimizer, batch_at, LoopSettings(job.steps), start=start):
        if done.step % job.log_every == 0 or done.step == job.steps:
            log(f"step {done.step}  loss {done.loss:.7f}  {done.tokens_per_second:,.0f} tokens/s")
        if job.checkpoint and (done.step == job.steps or (job.save_every and done.step % job.save_every == 0)):
            log(f"saved {save_step(job.checkpoint, done.step, model, optimizer, job.continued())}")


def _generate(job: Job, model: RankModel, log: Log) -> None:
    """Log the continuations of the prompts, one for each sequence of the batch."""
    model.eval()
    if job.ids is None:
        prompts = batch_of(job.seed, -1, job.batch, PROMPT_TOKENS - 1, job.model_spec.text.vocab_size)
    else:
        prompts = torch.tensor([job.ids]).expand(job.batch, -1)
    began = time.perf_counter()
    rows = model.generate(prompts.to(model.device), max_new_tokens=job.generate).tolist()
    seconds = time.perf_counter() - began
    for row in rows[:1] if job.ids is not None else rows:
        width = prompts.shape[1]
        log(f"{' '.join(map(str, row[:width]))} -> {' '.join(map(str, row[width:]))}")
    log(f"{len(rows) * job.generate} tokens in {seconds:.1f} s")
