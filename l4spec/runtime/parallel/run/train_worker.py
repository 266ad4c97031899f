"""One rank of a run: build its part, load, train, save, generate."""

import os
import time
from pathlib import Path

import torch
from torch import Tensor

from l4spec.errors import UserError
from l4spec.runtime.build import build
from l4spec.runtime.parallel.checkpoints import load_sharded, save_hub, save_sharded
from l4spec.runtime.parallel.checkpoints.rank_coordination import on_first
from l4spec.runtime.parallel.checkpoints.sharded import RUN, RunState, read_state
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.run.job import PROMPT_TOKENS, STEP, Job
from l4spec.runtime.parallel.run.synthetic import batch_of
from l4spec.runtime.parallel.run.task import Log, Store
from l4spec.runtime.parallel.step import train_step


def work(job: Job, log: Log, store: Store) -> None:
    """One rank's part of a run; `log` prints a line on rank 0 and nothing elsewhere."""
    checkpoint = on_first(lambda: _latest(job)) if job.resume else None
    is_filled = checkpoint is not None or job.weights is not None
    empty = build(job.graph, "meta", job.number_format)
    device = _own_device(job.device)
    model = distribute(empty, job.layout, device=device, seed=None if is_filled else job.seed, train=job.steps > 0)
    optimizer = make_optimizer(model, job.learning_rate) if job.steps else None
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


def make_optimizer(model: torch.nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """AdamW over what this rank holds; tensor by tensor, for they lie on different meshes."""
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0, foreach=False)


def _load(job: Job, model: RankModel, optimizer: torch.optim.Optimizer | None, checkpoint: str | None, log: Log) -> int:
    """Fill the model from what there is; the number of steps that are done."""
    if checkpoint is not None:
        _require_same_settings(job, read_state(Path(checkpoint)))
        state = load_sharded(model, checkpoint, optimizer, verify=job.verify)
        assert state is not None, "a folder of steps is sharded"
        log(f"resumed from {checkpoint} after step {state.step}")
        return state.step
    if job.weights is not None:
        load_sharded(model, job.weights, verify=job.verify)
        log(f"loaded {job.weights}")
    return 0


def _require_same_settings(job: Job, state: RunState) -> None:
    settings = state.settings or {}
    different = [
        f"{name} is {value} here and {settings[name]} there"
        for name, value in job.continued().items()
        if job.steps and name in settings and settings[name] != value
    ]
    if different:
        raise UserError(f"{job.checkpoint} is of another run: {', '.join(different)}")


def train(job: Job, model: RankModel, optimizer: torch.optim.Optimizer, start: int, log: Log) -> None:
    """Steps from `start` to the job's, saved as often as it says and at the end."""
    vocab_size = job.model_spec.text.vocab_size
    for step in range(start, job.steps):
        began = time.perf_counter()
        ids = batch_of(job.seed, step, job.batch, job.context, vocab_size).to(model.device)
        loss = optimize(model, optimizer, ids)
        seconds = time.perf_counter() - began
        log(f"step {step + 1}  loss {loss:.7f}  {job.batch * job.context / seconds:,.0f} tokens/s")
        done = step + 1
        if job.checkpoint and (done == job.steps or (job.save_every and done % job.save_every == 0)):
            folder = job.checkpoint / f"{STEP}{done:08d}"
            save_sharded(model, folder, optimizer, state=RunState(done, job.continued()))
            log(f"saved {folder}")


def optimize(model: RankModel, optimizer: torch.optim.Optimizer, ids: Tensor) -> float:
    """One step on a batch [sequences, tokens + 1] that all ranks know; the mean loss over all sequences."""
    own = model.own_rows(ids)
    loss = train_step(model, own[:, :-1], own[:, 1:], num_microbatches=None if model.mesh.layout.pp > 1 else 1)
    for parameter in model.parameters():
        if parameter.grad is None:  # experts without tokens, or layers that text does not reach: of all ranks alike
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return float(loss)


def _latest(job: Job) -> str | None:
    """The folder of the most steps; None where there is none yet. Leftovers of killed ranks are removed."""
    folder = job.checkpoint
    if folder is None or not folder.is_dir():
        return None
    job.clean_up()
    steps = {int(path.name.removeprefix(STEP)): path for path in folder.glob(f"{STEP}*") if _is_step(path)}
    return str(steps[max(steps)]) if steps else None


def _is_step(path: Path) -> bool:
    return path.name.removeprefix(STEP).isdecimal() and (path / RUN).is_file()


def _generate(job: Job, model: RankModel, log: Log) -> None:
    """Log the generated tokens, one line per sequence of the batch."""
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
