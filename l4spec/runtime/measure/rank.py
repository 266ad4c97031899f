"""Measurement of one rank of a layout: its memory, FLOPs and traffic."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from l4spec.runtime.build import build
from l4spec.runtime.measure.experts import watching_experts
from l4spec.runtime.measure.flops import counting_flops
from l4spec.runtime.measure.job import MeasureJob
from l4spec.runtime.measure.memory import tracking_memory
from l4spec.runtime.measure.results import RANK_STAGES, Ran, RankMeasurement, RankStage
from l4spec.runtime.measure.timing import NUM_TIMED, now
from l4spec.runtime.measure.traffic import counting_traffic
from l4spec.runtime.module_inventory import contents_of, module_bytes
from l4spec.runtime.parallel.distribute import distribute
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.run.task import Log, Store
from l4spec.runtime.parallel.step import train_step
from l4spec.runtime.sampling import Sampling

GREEDY = Sampling()


def measure_on_rank(job: MeasureJob, log: Log, store: Store) -> None:
    """Measure stage by stage, and write the results of each under `key_of(rank, stage)`."""
    rank = dist.get_rank()
    measured = _Measured(job)
    for stage in RANK_STAGES:
        if job.progress and rank == 0:
            sys.stderr.write(f"measuring {stage} ...\n")
            sys.stderr.flush()
        measured_stage = measured.stage(stage)
        store.set(key_of(rank, stage), measured_stage.written())


def key_of(rank: int, stage: RankStage) -> str:
    """Key of the store under which a rank writes its results of a stage."""
    return f"measured/{rank}/{stage}"


def read_measurements(store: TCPStore, world: int) -> list[RankMeasurement]:
    """Measurements of every rank, of the stages that all of them have finished."""
    done = [stage for stage in RANK_STAGES if all(store.check([key_of(rank, stage)]) for rank in range(world))]
    return [RankMeasurement.read([store.get(key_of(rank, stage)) for stage in done]) for rank in range(world)]


class _Measured:
    """A rank's model and its own prompts, [sequences, tokens], random by the job's seed."""

    def __init__(self, job: MeasureJob) -> None:
        self.job = job
        generator = torch.Generator().manual_seed(job.seed)
        self.prompts = torch.randint(
            job.graph.model.text.embedding.vocab_size, (job.batch, job.prefill), generator=generator
        )
        self.model = self._built(train=False)

    def _built(self, *, train: bool) -> RankModel:
        empty = build(self.job.graph, "meta", self.job.number_format)
        return distribute(empty, self.job.layout, device=self.job.device, seed=self.job.seed, train=train)

    def stage(self, stage: RankStage) -> RankMeasurement:
        """Measurements of one stage."""
        measuring: dict[RankStage, Callable[[], dict[str, Any]]] = {
            "weights": self._weights,
            "caches": self._caches,
            "prefill": self._prefill,
            "decode": self._decode,
            "memory": self._memory,
            "time": self._time,
            "training": self._training,
        }
        with torch.no_grad() if stage != "training" else torch.enable_grad():
            return RankMeasurement(**measuring[stage](), done=(stage,))

    @property
    def ids(self) -> Tensor:
        """This rank's prompts."""
        return self.model.own_rows(self.prompts).to(self.model.device)

    def _weights(self) -> dict[str, Any]:
        return {"params_by_part": contents_of(self.model).by_part, "weight_bytes": module_bytes(self.model)}

    def _caches(self) -> dict[str, Any]:
        if not self.job.graph.can_cache:
            return {}
        return {"cache_bytes": {n: self.model.new_cache(self.job.sequences, n).num_bytes for n in self.job.lengths}}

    def _prefill(self) -> dict[str, Any]:
        with _ran(self.model) as ran:
            self.model(self.ids, logits="last")
        return {"prefill": ran}

    def _decode(self) -> dict[str, Any]:
        if not self.job.decodes:
            return {}
        model, ids = self.model, self.ids
        cache = model.new_cache(self.job.sequences, self.job.prefill + self.job.decode)
        model(ids, cache=cache, logits="last")
        for _ in range(self.job.decode - 1):
            model(ids[:, -1:], cache=cache, logits="last")
        with _ran(model) as ran:
            model.choose_next(model(ids[:, -1:], cache=cache, logits="last"), GREEDY, None)
        return {"decode": ran}

    def _memory(self) -> dict[str, Any]:
        ids = self.ids
        cache = self.model.new_cache(len(ids), self.job.prefill) if self.job.graph.can_cache else None
        with tracking_memory(self.model.device) as memory:
            result = self.model(ids, cache=cache, logits="last")
        del result
        return {"activation_bytes": memory.peak_bytes}

    def _time(self) -> dict[str, Any]:
        """All ranks begin together; each tells when it is done, in a pipeline the first one earlier than the last."""
        model, ids = self.model, self.ids
        steps = self.job.decode if self.job.decodes else 0
        cache = model.new_cache(len(ids), self.job.prefill + steps) if self.job.graph.can_cache else None
        prefills = []
        for _ in range(NUM_TIMED + 1):
            if cache is not None:
                cache.reset()
            prefills.append(_timed(lambda: model(ids, cache=cache, logits="last"), model.device))
        seconds = [_timed(lambda: model(ids[:, -1:], cache=cache, logits="last"), model.device) for _ in range(steps)]
        return {
            "prefill_seconds": median(prefills[1:]),
            "decode_seconds": median(seconds[1:]) if len(seconds) > 1 else None,
        }

    def _training(self) -> dict[str, Any]:
        """The second step: in the first one torch's pipeline stages exchange metadata."""
        if not self.job.train:
            return {}
        self.model = self._built(train=True)
        self._step()
        with _ran(self.model) as ran:
            self._step()
        return {"training": ran}

    def _step(self) -> None:
        ids = self.ids
        train_step(self.model, ids, ids.roll(-1, 1), num_microbatches=None if self.job.layout.pp > 1 else 1)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    dist.barrier()
    start = now(device)
    run()
    return now(device) - start


@contextmanager
def _ran(model: RankModel) -> Iterator[Ran]:
    """Context manager that records FLOPs, traffic and expert load, complete at its end."""
    ran = Ran({}, {}, {})
    groups = model.mesh.groups()
    with watching_experts(model) as load, counting_traffic(groups) as ledger, counting_flops(model) as flops:
        yield ran
    ran.flops.update(flops)
    ran.load.update(load)
    for (group, collective, _), sent in ledger.items():
        key = f"{group.partition(':')[0]} {collective}"
        calls, size = ran.handed.get(key, (0, 0))
        ran.handed[key] = (calls + sent.calls, size + sent.payload_bytes)
