"""The passes of one optimizer step: microbatches forward and backward, over the stages of a pipeline or without one.

Stages run one forward, one backward in turn (1F1B, arXiv:2104.04473), so that stage s of p keeps at most p - s
microbatches, as the planner counts; torch.distributed.pipelining schedules and sends.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from l4spec.layers.common.parallel import group_of, sum_over
from l4spec.runtime.parallel.loss import IGNORED, Objective
from l4spec.runtime.parallel.model import RankModel
from l4spec.runtime.parallel.mtp import MTPLoss, counts_by_depth
from l4spec.runtime.parallel.training import local_of


@dataclass(frozen=True, slots=True)
class Microbatch:
    """Sequences that run together: ids and labels [rows, tokens], other inputs of `RankModel.run_stage`, and extras."""

    input_ids: Tensor
    labels: Tensor
    inputs: dict[str, Tensor]
    extras: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Goal:
    """Loss of a step: `objective` (None: cross entropy), in the mean over `count` labels of all ranks.

    With `mtp` the modules' losses are added, over `counts` labels [modules].
    """

    objective: Objective | None
    count: Tensor
    mtp: MTPLoss | None = None
    counts: Tensor | None = None


def train_step(
    model: RankModel,
    input_ids: Tensor,
    labels: Tensor,
    *,
    num_microbatches: int | None = None,
    objective: Objective | None = None,
    extras: Mapping[str, Tensor] | None = None,
    mtp: MTPLoss | None = None,
    **inputs: Tensor,
) -> Tensor:
    """The mean cross entropy of the whole batch, the same on every rank; its gradients are left in `.grad`.

    `input_ids` and `labels` [sequences, tokens] are this rank's own (`own_rows`), the same on all stages; a label
    follows each token, -100 counts not. They run in `num_microbatches` equal parts, by default one sequence each.
    `inputs` are `attention_mask` or `sequence_ids`, and `pixel_values`, of `RankModel.forward`; a rank whose sequences
    have no images may leave them out. An `objective` takes the place of cross entropy, and is shown the `extras`
    [sequences, ...] of its part. With `mtp` gradients are those of the loss and `mtp.weight` times the mean of the
    losses of the model's modules, which are left in `mtp.depths`; the loss that is returned has none of them. Earlier
    gradients are dropped; a mixture's capacity counts within a part. Raises ValueError for sequences that cannot be
    divided, and for modules that cannot be trained so.
    """
    if mtp is not None:
        _require_trainable_modules(model, objective, inputs)
    num_microbatches = len(input_ids) if num_microbatches is None else num_microbatches
    data = model.mesh.data
    num_labels, somebody_sees = _shared_with_all(model, labels, "pixel_values" in inputs)
    if somebody_sees:
        inputs.setdefault("pixel_values", _no_tiles(model))
    batches = microbatches(model, input_ids, labels, num_microbatches, inputs, extras)
    counts = None if mtp is None else _counts_of_modules(model, labels, inputs.get("sequence_ids"))
    goal = Goal(objective, num_labels.clamp(min=1).double() / data.size, mtp, counts)
    if isinstance(model, FSDPModule):
        model.reshard()  # an evaluation leaves the whole model's own weights gathered, whose gradients are others
    model.zero_grad(set_to_none=True)
    if mtp is not None:
        mtp.depths = None
    model.loss_scale = 1 / num_microbatches
    run = _run_alone if model.line.pp.size == 1 else _run_in_line
    loss = run(model, batches, goal)
    model.finish_backward()
    add_tied_gradients(model)
    if mtp is not None and mtp.depths is not None:
        mtp.depths = sum_over(mtp.depths, data) / data.size
    return sum_over(loss, data) / data.size


def _require_trainable_modules(model: RankModel, objective: Objective | None, inputs: Mapping[str, Tensor]) -> None:
    """Raise ValueError where the loss of modules is not defined."""
    if not model.num_modules:
        raise ValueError(f"{model.graph.name} was built without modules of multi-token prediction")
    if model.mesh.layout.pp > 1 or model.sequence_parallel:
        raise ValueError("modules are trained without pipeline stages and sequence parallelism")
    if objective is not None or inputs.keys() - {"sequence_ids"}:
        raise ValueError("modules are trained beside the cross entropy of packed rows without images")


def _counts_of_modules(model: RankModel, labels: Tensor, sequence_ids: Tensor | None) -> Tensor:
    """Labels of each module [modules] on all data-parallel ranks, divided by their number."""
    data = model.mesh.data
    counts = sum_over(counts_by_depth(labels, sequence_ids, model.num_modules), data)
    return counts.clamp(min=1).double() / data.size


def _shared_with_all(model: RankModel, labels: Tensor, sees: bool) -> tuple[Tensor, bool]:
    """Number of labels that count on all data-parallel ranks, and whether any of these has images."""
    number = (labels != IGNORED).sum()
    if model.num_tokens_per_tile == 0:
        return sum_over(number, model.mesh.data), False
    number, seeing = sum_over(torch.stack((number, torch.full_like(number, sees))), model.mesh.data)
    return number, bool(seeing)


def _no_tiles(model: RankModel) -> Tensor:
    vision = model.graph.model.vision
    assert vision is not None, "only a model with a tower is given images"
    size, channels = vision.patch_embedding.image_size, vision.patch_embedding.num_channels
    return torch.empty(0, channels, size, size, dtype=model.dtype, device=model.device)


def microbatches(
    model: RankModel,
    input_ids: Tensor,
    labels: Tensor,
    count: int,
    inputs: dict[str, Tensor],
    extras: Mapping[str, Tensor] | None = None,
) -> list[Microbatch]:
    """Equal parts of a batch; image tiles go with the sequences that have their places.

    A part without images gets no tiles, not no tower: data-parallel ranks gather its weights together.
    """
    if count < 1 or len(input_ids) % count:
        raise ValueError(f"{len(input_ids)} sequences cannot be cut into {count} equal microbatches")
    parts: dict[str, tuple[Tensor, ...]] = {
        name: torch.chunk(given, count) for name, given in inputs.items() if name != "pixel_values"
    }
    ids = torch.chunk(input_ids, count)
    if "pixel_values" in inputs:
        token = -1 if model.image_token_id is None else model.image_token_id
        tiles = [int(part.eq(token).sum()) // max(model.num_tokens_per_tile, 1) for part in ids]
        if sum(tiles) != len(inputs["pixel_values"]):
            raise ValueError(f"{len(inputs['pixel_values'])} image tiles for places of {sum(tiles)}")
        parts["pixel_values"] = torch.split(inputs["pixel_values"], tiles)
    return [
        Microbatch(
            own_ids,
            own_labels,
            {name: given[index] for name, given in parts.items()},
            {name: torch.chunk(given, count)[index] for name, given in (extras or {}).items()},
        )
        for index, (own_ids, own_labels) in enumerate(zip(ids, torch.chunk(labels, count), strict=True))
    ]


def _run_alone(model: RankModel, batches: list[Microbatch], goal: Goal) -> Tensor:
    losses = []
    for index, batch in enumerate(batches):
        _announce(model, is_last=index == len(batches) - 1)
        loss, added = _with_modules(model, batch, goal)
        total = loss if added is None else loss + added
        total.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def _with_modules(model: RankModel, batch: Microbatch, goal: Goal) -> tuple[Tensor, Tensor | None]:
    """The loss of a microbatch with the part of the modules; their own losses are summed in `mtp.depths`."""
    mtp = goal.mtp
    if mtp is None:
        return _loss_of(model, batch, goal), None
    assert goal.counts is not None
    counts = torch.cat((goal.count[None], goal.counts))
    loss, further = model.losses_with_modules(
        batch.input_ids, batch.labels, weight=mtp.weight, counts=counts, **batch.inputs
    )
    own = further.detach()
    mtp.depths = own if mtp.depths is None else mtp.depths + own
    return loss, mtp.weight * further.mean()


def _loss_of(model: RankModel, batch: Microbatch, goal: Goal, hidden: Tensor | None = None) -> Tensor:
    return model.loss(
        batch.input_ids,
        batch.labels,
        hidden=hidden,
        count=goal.count,
        objective=goal.objective,
        extras=batch.extras,
        **batch.inputs,
    )


def _announce(model: RankModel, *, is_last: bool) -> None:
    """Tell FSDP whether another backward pass of this step follows."""
    if isinstance(model, FSDPModule):
        model.set_is_last_backward(is_last)


def _run_in_line(model: RankModel, batches: list[Microbatch], goal: Goal) -> Tensor:
    shape = (len(batches), *batches[0].input_ids.shape)
    prepared = model.line.prepared
    if not isinstance(prepared, _Prepared) or prepared.shape != shape:
        prepared = model.line.prepared = _Prepared(model, shape)
    return model.line.from_last(prepared.run(batches, goal))


class _Prepared:
    """A stage and its schedule for microbatches [number, rows, tokens] of one shape: buffers are kept between steps."""

    def __init__(self, model: RankModel, shape: tuple[int, int, int]) -> None:
        self.shape, self.line = shape, model.line
        self.part = _Part(model)
        pp, device = self.line.pp, model.device
        index = torch.zeros(1, dtype=torch.long)
        tokens = shape[2] // (model.mesh.layout.tp if model.sequence_parallel else 1)
        hidden = torch.empty(shape[1], tokens, model.stream_width, dtype=model.dtype, device="meta", requires_grad=True)
        stage = _Stage(
            self.part,
            pp.index,
            pp.size,
            device,
            input_args=index if self.line.is_first else hidden,
            output_args=hidden.new_empty((), requires_grad=True) if self.line.is_last else hidden,
            group=group_of(pp),
        )
        schedule = Schedule1F1B if shape[0] >= pp.size else ScheduleGPipe
        self.zero = torch.zeros((), dtype=torch.promote_types(model.dtype, torch.float32), device=device)
        self.schedule = schedule(stage, shape[0], loss_fn=_given_loss, scale_grads=False)

    def run(self, batches: list[Microbatch], goal: Goal) -> Tensor:
        """Forward and backward of all microbatches; the sum of their losses on the last stage, elsewhere zero."""
        self.part.batches, self.part.goal = batches, goal
        index = torch.arange(len(batches))
        losses: list[Tensor] = []
        if self.line.is_first:
            self.schedule.step(index, return_outputs=False)
        elif self.line.is_last:
            self.schedule.step(index=index, target=index, losses=losses, return_outputs=False)
        else:
            self.schedule.step(index=index, return_outputs=False)
        self.part.batches = []
        return torch.stack([loss.detach() for loss in losses]).sum() if losses else self.zero.clone()


def _given_loss(loss: Tensor, _: Tensor) -> Tensor:
    return loss


class _Part(nn.Module):
    """One stage of a microbatch, selected by its index, as the schedule runs it; the last stage returns the loss."""

    def __init__(self, model: RankModel) -> None:
        super().__init__()
        self._model = (model,)  # a tuple hides it: torch's stage would take FSDP into its own hands
        self.batches: list[Microbatch] = []
        self.goal = Goal(None, torch.ones(()))

    def forward(self, given: Tensor, index: Tensor | None = None) -> Tensor:
        """Hidden states of the stage before (the first is given the index) to this stage's, or to the loss."""
        (model,) = self._model
        batch = self.batches[int(given if index is None else index)]
        hidden = None if index is None else given
        if model.line.is_last:
            return _loss_of(model, batch, self.goal, hidden)
        return model.run_stage(batch.input_ids, hidden, **batch.inputs).contiguous()


class _Stage(PipelineStage):
    """Tells FSDP when a microbatch's backward pass is the step's last."""

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Tensor | None = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        """As torch's; `last_backward` is true for the step's last microbatch."""
        part = self.submod
        assert isinstance(part, _Part)
        _announce(part._model[0], is_last=last_backward)
        super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)


@torch.no_grad()
def add_tied_gradients(model: RankModel) -> None:
    """Add up the gradients of a tied table, which the first stage holds as embedding and the last as head."""
    line = model.line
    if line.pp.size == 1 or not model.graph.model.text.head.tied or not (line.is_first or line.is_last):
        return
    owner = next(node.id for node in model.graph.nodes if node.role == "embedding")
    table = model.get_tensor(f"{owner}.weight")
    if not table.requires_grad:
        return
    grad = table.grad
    assert grad is not None, "both ends of a pipeline use the table"
    own = local_of(grad)
    own += line.exchanged(own)
