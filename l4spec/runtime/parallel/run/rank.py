"""One process of a run: it meets the others, works, and ends with them."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from l4spec.errors import UserError
from l4spec.runtime.parallel.run.failure_detection import Address, Watch, leave
from l4spec.runtime.parallel.run.task import Task

LAUNCHED = "L4SPEC_LAUNCHED"
"""Set by `l4spec run --nproc`, which prints the error that ended its ranks."""
MOST_RANKS = 1_000_000
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_rank(task: Task) -> None:
    """Run `task` as the rank that the environment variables of torchrun name, then exit the process.

    Raises UserError for missing or malformed variables.
    """
    numbers = [os.environ.get(name, "") for name in _NEEDED]
    if not (numbers[0].isdecimal() and numbers[1].isdecimal() and numbers[2] and numbers[3].isdecimal()):
        raise UserError(f"expected {', '.join(_NEEDED)} in the environment, as torchrun sets them")
    rank, world, host, port = int(numbers[0]), int(numbers[1]), numbers[2], int(numbers[3])
    if not (0 <= rank < world <= MOST_RANKS and 0 < port < 1 << 16):
        actual = f"rank {rank:,} of {world:,} and port {port:,}"
        raise UserError(f"expected a rank below WORLD_SIZE and a MASTER_PORT below {1 << 16:,}, found {actual}")
    launched = LAUNCHED in os.environ
    kept_elsewhere = launched or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    watch = Watch(Address(host, port, kept_elsewhere), rank, world, task.timeout, speaks=not launched)
    with watch.guarded():
        task.check()
        watch.meet(task.shared())
        if world != task.layout.num_devices:
            raise UserError(f"{task.layout} makes {task.layout.num_devices} ranks, and {world} are running")
        _work(task, watch, rank, world)
    leave(0)


def _work(task: Task, watch: Watch, rank: int, world: int) -> None:
    from l4spec.runtime.devices import checked_device

    checked_device(task.device)
    backend = "cpu:gloo,cuda:nccl" if task.device.startswith("cuda") else "gloo"
    store = PrefixStore("group", watch.store)
    limit = timedelta(seconds=task.timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    task.work(_printer(rank), watch.store)


def _printer(rank: int) -> Callable[[str], None]:
    is_read = True

    def log(line: str) -> None:
        nonlocal is_read
        if rank != 0 or not is_read or sys.stdout is None:
            return
        try:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        except BrokenPipeError:  # `l4spec run ... | head`: the run continues, and what it saves is whole
            is_read = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return log
