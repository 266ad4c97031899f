"""The torch module of the mixture of experts: only chosen experts are touched."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from l4spec.layers.base import Width
from l4spec.layers.common.grouped_linear import grouped_linear, hit
from l4spec.layers.common.modules import (
    Context,
    GatedFFN,
    GatedProduct,
    LayerModule,
    Linear,
    Norm,
    PlainFFN,
    Products,
    add_bias,
    empty,
    expert_linear,
    read_rows,
)
from l4spec.layers.common.parallel import Ranks, gather, sum_over
from l4spec.layers.moe.balance import attach, auxiliary_loss, chosen_by_experts, gate_probabilities, z_loss
from l4spec.layers.moe.router import Router
from l4spec.layers.moe.spec import BalanceSpec, MoESpec


class Experts(nn.Module):
    """Stacked experts: gate_proj and up_proj [experts, ffn, hidden], down_proj [experts, hidden, ffn].

    With biases gate_bias and up_bias [experts, ffn], down_bias [experts, hidden]. Without gates those are missing.
    """

    gate_proj: Tensor
    up_proj: Tensor
    down_proj: Tensor
    bias_share: float = 1.0
    """Factor on `down_bias`: of tensor-parallel ranks whose outputs are added up, one adds it."""
    products: Mapping[str, Products] = MappingProxyType({})
    """Products of the stacks in training, by name (`gate_proj`); stacks without an entry use the plain ones."""

    def __init__(self, spec: MoESpec, hidden_size: int) -> None:
        super().__init__()
        self.is_gated, self.is_biased, inner = spec.gated, spec.expert_bias, spec.intermediate_size
        sizes = {"gate": (inner, hidden_size), "up": (inner, hidden_size), "down": (hidden_size, inner)}
        for name, (out, into) in sizes.items():
            is_there = spec.gated or name != "gate"
            is_biased = spec.expert_bias and is_there
            self.register_parameter(f"{name}_proj", empty(spec.num_experts, out, into) if is_there else None)
            self.register_parameter(f"{name}_bias", empty(spec.num_experts, out) if is_biased else None)
        self.gated = GatedProduct(spec.activation, spec.clamp)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Rows [rows, hidden] sorted by expert, expert e's ending at offsets[e], to [rows, hidden]."""
        if x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.is_grad_enabled():
            return self._one_by_one(x, offsets)
        experts = self._expert_of_rows(x, offsets)

        def project(name: str, rows: Tensor) -> Tensor:
            result, bias = self._grouped(f"{name}_proj", rows, offsets), self.bias_of(name, experts)
            return result if bias is None else result + bias

        return self._through(project, x)

    def _grouped(self, name: str, rows: Tensor, offsets: Tensor) -> Tensor:
        products = self.products.get(name) if self.training else None
        return (grouped_linear if products is None else products.grouped)(rows, getattr(self, name), offsets)

    def _through(self, project: Callable[[str, Tensor], Tensor], x: Tensor) -> Tensor:
        """Rows through the projections of their experts, with a gate or without."""
        if not self.is_gated:
            return project("down", self.gated.activated(project("up", x)))
        gate = self.gated.activated(project("gate", x))
        return project("down", self.gated.times(gate, project("up", x)))

    def _expert_of_rows(self, x: Tensor, offsets: Tensor) -> Tensor | None:
        """The expert of each of the sorted rows, where experts have biases."""
        if not self.is_biased:
            return None
        counts = offsets.diff(prepend=offsets.new_zeros(1))
        experts = torch.arange(offsets.shape[0], device=offsets.device)
        return experts.repeat_interleave(counts, output_size=x.shape[0])

    def bias_of(self, name: str, experts: Tensor | int | None) -> Tensor | None:
        """The bias of a projection (`gate`, `up`, `down`) of one expert [out] or of several [experts, out], if any."""
        bias: Tensor | None = getattr(self, f"{name}_bias")
        if bias is None:
            return None
        chosen = bias[experts]
        return chosen * self.bias_share if name == "down" and self.bias_share != 1.0 else chosen

    def _one_by_one(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Expert by expert, so that intermediate results stay in the CPU's cache."""
        done = [self.single(x[start:stop], expert) for expert, start, stop in hit(offsets)]
        return torch.cat(done) if done else x.new_zeros(x.shape)

    def single(self, x: Tensor, expert: int) -> Tensor:
        """One expert on all rows, without gradients."""
        return self._through(lambda name, rows: self.project(name, rows, expert), x)

    def project(self, name: str, x: Tensor, expert: int) -> Tensor:
        """One projection (`gate`, `up`, `down`) of one expert, without gradients."""
        weight = getattr(self, f"{name}_proj")[expert]
        products = self.products.get(f"{name}_proj") if self.training else None
        result = expert_linear(x, weight) if products is None else products.linear(x, weight)
        return add_bias(result, self.bias_of(name, expert))

    def indexed(self, x: Tensor, experts: Tensor) -> Tensor:
        """Row i of `x` [rows, hidden] through expert experts[i], which a compiler reads in place."""

        def project(name: str, rows: Tensor) -> Tensor:
            result, bias = read_rows(rows, getattr(self, f"{name}_proj")[experts]), self.bias_of(name, experts)
            return result if bias is None else result + bias

        return self._through(project, x)


class MoE(LayerModule):
    """Routed experts on the tokens that chose them, plus the shared expert on all tokens."""

    ranks = Ranks()
    """The mesh, of one rank unless experts or sequences are divided."""

    def __init__(self, spec: MoESpec, width: Width) -> None:
        super().__init__()
        self.spec = spec
        hidden = width.hidden_size
        self.router = Router(spec, hidden, width.vocab_size)
        self.input_norm = None if spec.input_norm is None else Norm(hidden, spec.input_norm.eps)
        self.experts = Experts(spec, spec.latent_size or hidden)
        self.latent_down_proj = self.latent_up_proj = None
        if spec.latent_size is not None:
            self.latent_down_proj = Linear(hidden, spec.latent_size, bias=False)
            self.latent_up_proj = Linear(spec.latent_size, hidden, bias=False)
        self.shared_expert = _shared_expert(spec, hidden) if spec.num_shared_experts else None
        self.shared_expert_gate = Linear(hidden, 1, bias=False) if spec.shared_gate else None

    def forward(self, x: Tensor, *, context: Context) -> Tensor:
        """[batch, tokens, hidden] to [batch, tokens, hidden]."""
        tokens = x.flatten(0, 1)
        given = tokens if self.input_norm is None else self.input_norm(tokens)
        is_trained = self.training and torch.is_grad_enabled()
        routed = (self._trained if is_trained else self._run)(tokens, given, context)
        if self.latent_up_proj is not None:
            routed = self.latent_up_proj(routed)
        if self.shared_expert is not None:
            shared = self.shared_expert(given)
            if self.shared_expert_gate is not None:
                shared = shared * self.shared_expert_gate(given).sigmoid()
            routed = routed + shared
        return routed.view_as(x)

    def _run(self, tokens: Tensor, given: Tensor, context: Context) -> Tensor:
        """Routed experts on `given`, which the router chooses by `tokens`: both [tokens, hidden]."""
        scores, experts = self.router(tokens, context.token_ids)
        if context.record is not None:
            counts = torch.bincount(experts.flatten(), minlength=self.spec.num_experts)
            context.record(self.node_id, counts, counts.new_zeros(()))
        return self._routed(self._narrowed(given), scores.to(tokens.dtype), experts, context)

    def _narrowed(self, given: Tensor) -> Tensor:
        """Input of the routed experts, from [tokens, hidden]: the tokens themselves, or their latents."""
        return given if self.latent_down_proj is None else self.latent_down_proj(given)

    def _trained(self, tokens: Tensor, given: Tensor, context: Context) -> Tensor:
        """As `_run`, with the losses of the spec's `balance` attached, and the load recorded."""
        if self.spec.balance is None and context.record is None:
            return self._run(tokens, given, context)
        logits = self.router.logits(tokens)
        if self.spec.balance is not None and self.spec.balance.expert_choice is not None:
            return self._expert_choice(given, logits, self.spec.balance, context)
        scores, experts = self.router.choose(logits, context.token_ids)
        choices = nn.functional.one_hot(experts, self.spec.num_experts).sum(dim=1)
        choices = choices * _real(context, tokens)[:, None]
        if self.spec.balance is not None:
            scores = self._with_losses(scores, logits, choices, self.spec.balance, context)
        fits = None if self.spec.capacity_factor is None else self._fits(experts, context)
        if context.record is not None and not context.is_recomputed:
            dropped = choices.new_zeros(()) if fits is None else self._dropped(fits, tokens, context)
            context.record(self.node_id, choices.sum(dim=0), dropped)
        return self._sorted(self._narrowed(given), scores.to(tokens.dtype), experts, fits)

    def _dropped(self, fits: Tensor, tokens: Tensor, context: Context) -> Tensor:
        return (~fits & _real(context, tokens)[:, None]).sum()

    def _with_losses(
        self, scores: Tensor, logits: Tensor, choices: Tensor, balance: BalanceSpec, context: Context
    ) -> Tensor:
        """Scores that carry the layer's losses; tensor-parallel ranks, which all route, take a share each."""
        share = context.loss_scale / self.ranks.tp.size
        is_real = _real(context, logits)
        if balance.auxiliary_loss is not None:
            probabilities = gate_probabilities(logits, self.spec.router.score) * is_real[:, None]
            loss = self._auxiliary(probabilities, choices, balance.counted_over, context)
            scores = attach(scores, share * balance.auxiliary_loss * loss)
        if balance.z_loss is not None:
            loss = (z_loss(logits) * is_real).sum() / is_real.sum().clamp(min=1)
            scores = attach(scores, share * balance.z_loss * loss)
        return scores

    def _auxiliary(self, probabilities: Tensor, choices: Tensor, over: str, context: Context) -> Tensor:
        """The auxiliary loss of probabilities and choices [tokens, experts]: this rank's share of a mean over ranks."""
        top_k = self.spec.num_experts_per_token
        choices = choices.to(probabilities.dtype)
        if over == "sequence":
            sequence, count = _sequences(context, choices)
            grouped = choices.new_zeros(count, choices.shape[1]).index_add(0, sequence, choices)
            sums = probabilities.new_zeros(count, choices.shape[1]).index_add(0, sequence, probabilities)
            tokens = (grouped.sum(dim=-1, keepdim=True) / top_k).clamp(min=1)
            losses = auxiliary_loss(grouped / (tokens * top_k), sums / tokens)
            return (losses * tokens[:, 0]).sum() / tokens.sum()
        axis = self.ranks.ep if over == "ep_group" else self.ranks.data
        counted = context.once(f"{self.node_id}:load", lambda: sum_over(choices.sum(dim=0), axis))
        tokens = (counted.sum() / top_k).clamp(min=1)
        return auxiliary_loss(counted / (tokens * top_k), probabilities.sum(dim=0) * axis.size / tokens)

    def _expert_choice(self, tokens: Tensor, logits: Tensor, balance: BalanceSpec, context: Context) -> Tensor:
        """Each expert takes its best tokens of all ranks; a token may be taken by several experts, or by none."""
        is_real, data = _real(context, tokens), self.ranks.data
        worth = self._worth(logits, is_real)
        everywhere = gather(worth, data)  # [ranks, tokens, experts]
        num_taken = self.spec.num_taken(int(torch.isfinite(everywhere[..., 0]).sum()))
        assert num_taken is not None
        is_taken = chosen_by_experts(everywhere.flatten(0, 1), num_taken)
        is_taken = is_taken.view_as(everywhere)[data.index] & is_real[:, None]
        scores = self.router.taken(logits, is_taken)
        if balance.z_loss is not None:
            scores = self._with_losses(scores, logits, is_taken, balance, context)
        counts = is_taken.sum(dim=0)
        if context.record is not None and not context.is_recomputed:
            context.record(self.node_id, counts, counts.new_zeros(()))
        return self._taken(self._narrowed(tokens), scores.to(tokens.dtype), is_taken, counts.int())

    def _worth(self, logits: Tensor, is_real: Tensor) -> Tensor:
        """Values by which experts choose tokens, [tokens, experts]: the score's logarithm, -inf for padding."""
        values = logits.detach().log_softmax(dim=-1) if self.spec.router.score == "softmax" else logits.detach()
        return values.masked_fill(~is_real[:, None], float("-inf"))

    def _taken(self, tokens: Tensor, scores: Tensor, is_taken: Tensor, counts: Tensor) -> Tensor:
        """Run each expert on the tokens that it chose, and sum the outputs of each token."""
        expert, token = is_taken.t().nonzero(as_tuple=True)
        weights = scores[token, expert][:, None]
        rows = tokens[token]
        if self.spec.router.scales == "input":
            rows = rows * weights
        result = self._through_experts(rows, counts)
        if self.spec.router.scales == "output":
            result = result * weights
        return torch.zeros_like(tokens).index_add(0, token, result)

    def _routed(self, tokens: Tensor, scores: Tensor, experts: Tensor, context: Context) -> Tensor:
        if self.spec.capacity_factor is not None:
            return self._sorted(tokens, scores, experts, self._fits(experts, context))
        alone = tokens.shape[0] == 1 and tokens.device.type == "cpu" and not torch.is_grad_enabled()
        if alone and not torch.compiler.is_compiling():
            return self._one_token(tokens, scores[0], experts[0].tolist())
        if alone and isinstance(self.experts, Experts):
            return self._one_token_compiled(tokens, scores[0], experts[0])
        return self._sorted(tokens, scores, experts, None)

    def _one_token(self, token: Tensor, scores: Tensor, experts: list[int]) -> Tensor:
        """A decode step of one sequence: no sorting, each chosen expert's weights are read in place."""
        scales_input = self.spec.router.scales == "input"
        total = None
        for score, expert in zip(scores.unbind(), experts, strict=True):
            if scales_input:
                term = self.experts.single(token * score, expert)
            else:
                term = self.experts.single(token, expert).mul_(score)
            total = term if total is None else total.add_(term)
        assert total is not None
        return total

    def _one_token_compiled(self, token: Tensor, scores: Tensor, experts: Tensor) -> Tensor:
        """The same for a compiler, which must not ask which experts they are; scores and experts are [top-k]."""
        scales_input = self.spec.router.scales == "input"
        given = token * scores[:, None] if scales_input else token.expand(len(experts), -1)
        terms = self.experts.indexed(given, experts)
        return (terms if scales_input else terms * scores[:, None]).sum(dim=0, keepdim=True)

    def _sorted(self, tokens: Tensor, scores: Tensor, experts: Tensor, fits: Tensor | None) -> Tensor:
        """Sort (token, expert) pairs by expert, run each expert on its rows, and sum the rows of each token."""
        num_tokens, top_k = experts.shape
        flat = experts.flatten()
        order = flat.argsort(stable=True)
        counts = torch.zeros(self.spec.num_experts, dtype=torch.int32, device=flat.device)
        counts = counts.scatter_add(0, flat, torch.ones_like(flat, dtype=torch.int32))
        rows = tokens[order // top_k if top_k > 1 else order]
        if self.spec.router.scales == "input":
            rows = rows * scores.flatten()[order, None]
        result = self._through_experts(rows, counts)
        back = torch.empty_like(order).scatter(0, order, torch.arange(order.shape[0], device=order.device))
        by_token = result[back].view(num_tokens, top_k, -1)
        if self.spec.router.scales == "output":
            by_token = by_token * scores[..., None]
        if fits is not None:
            by_token = by_token * fits.to(by_token.dtype)[..., None]
        total: Tensor = by_token[:, 0] if top_k == 1 else by_token.sum(dim=1)
        return total

    def _through_experts(self, rows: Tensor, counts: Tensor) -> Tensor:
        """Rows sorted by expert, `counts` [experts] of each, through their experts."""
        result: Tensor = self.experts(rows, counts.cumsum(0, dtype=torch.int32))
        return result

    def _fits(self, experts: Tensor, context: Context) -> Tensor:
        """Mask of the choices [tokens, top-k] within their expert's capacity, ceil(factor * choices / experts).

        Tokens come first by position in the batch, a token's choices by score; padding takes no room.
        """
        assert self.spec.capacity_factor is not None
        choices = nn.functional.one_hot(experts.flatten(), self.spec.num_experts)
        valid = context.layout.valid()
        if valid is not None:
            choices = choices * valid.flatten().repeat_interleave(experts.shape[1])[:, None]
        before, num_choices = self._batch_around(choices, context.layout.num_rows)
        capacity = math.ceil(self.spec.capacity_factor * num_choices / self.spec.num_experts)
        place = ((choices.cumsum(0) + before) * choices).sum(dim=-1)
        return (place <= capacity).view_as(experts)

    def _batch_around(self, choices: Tensor, num_rows: int) -> tuple[Tensor | int, int]:
        """Number of choices of each expert before these [choices, experts], and the total number of choices.

        They are those of `num_rows` sequences; the former may be given for each choice.
        """
        return 0, choices.shape[0]


def _shared_expert(spec: MoESpec, hidden_size: int) -> nn.Module:
    if not spec.gated:
        return PlainFFN(hidden_size, spec.shared_size, spec.activation)
    return GatedFFN(hidden_size, spec.shared_size, spec.activation, clamp=spec.clamp)


def _real(context: Context, tokens: Tensor) -> Tensor:
    """Mask of `tokens` [tokens, ...] that are not padding, bool [tokens]."""
    valid = context.layout.valid()
    return tokens.new_ones(tokens.shape[0], dtype=torch.bool) if valid is None else valid.flatten()


def _sequences(context: Context, tokens: Tensor) -> tuple[Tensor, int]:
    """Index of each token's sequence [tokens], and the number of sequences: rows, or sequences packed into rows."""
    layout = context.layout
    rows = torch.arange(layout.num_rows, device=tokens.device).repeat_interleave(layout.num_tokens)
    if layout.sequence_ids is None:
        return rows, layout.num_rows
    most = int(layout.sequence_ids.max()) + 1
    return rows * most + layout.sequence_ids.flatten(), layout.num_rows * most
