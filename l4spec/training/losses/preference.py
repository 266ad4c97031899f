"""Direct preference optimization on pairs: rows 2i are chosen, rows 2i + 1 rejected."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from l4spec.runtime.parallel.loss import Scored


def dpo_loss(log_probs: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta ((p_w - ref_w) - (p_l - ref_l))) of each pair [pairs] (arXiv:2305.18290, equation 7).

    `log_probs` and `reference` [2 x pairs] are of whole answers, chosen and rejected in turn.
    """
    gained = log_probs - reference
    return -logsigmoid(beta * (gained[0::2] - gained[1::2]))


@dataclass(frozen=True, slots=True)
class DpoObjective:
    """The mean loss of a batch of `num_pairs`; `extras` has reference [rows], log probabilities of whole answers."""

    beta: float
    num_pairs: int

    def __call__(self, scored: Scored) -> Tensor:
        """See `l4spec.runtime.parallel.loss.Objective`."""
        answers = scored.log_probs().sum(dim=1)
        return dpo_loss(answers, scored.extras["reference"], self.beta).sum() / self.num_pairs
