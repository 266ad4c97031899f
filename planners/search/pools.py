"""The hardware that a search may choose from, with prices."""

from dataclasses import dataclass

from l4spec.errors import Problem, UserError
from planners.catalog import shipped_names
from planners.catalog.cluster import Cluster, parse_cluster
from planners.catalog.prices import lowest_offer
from planners.search.search_request import SearchRequest, choices


@dataclass(frozen=True, slots=True)
class Pool:
    """GPUs of one kind that may be used, with their price in USD per hour and its source."""

    cluster: Cluster
    most: int
    usd: float | None
    source: str | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of GPUs to try: powers of two, and all that there are."""
        return tuple(sorted({1 << power for power in range(self.most.bit_length())} | {self.most}))


def pools_of(request: SearchRequest) -> list[Pool]:
    """The hardware to choose from. Raises UserError with every name that is unknown."""
    if request.gpus is not None and not request.gpus.strip():
        raise UserError([Problem("expected GPUs, found nothing", path="gpus", hint="leave it out for all hardware")])
    pools, problems = [], []
    for text in choices(request.gpus or "", shipped_names("hardware")):
        try:
            cluster = parse_cluster(text)
        except UserError as error:
            problems += [Problem(problem.message, path="gpus", hint=problem.hint) for problem in error.problems]
            continue
        bare = cluster.written == text
        offer = None if request.usd_per_gpu_hour is not None else lowest_offer(cluster.hardware.name)
        price = request.usd_per_gpu_hour if offer is None else offer.usd_per_gpu_hour
        source = "--usd-per-gpu-hour" if request.usd_per_gpu_hour is not None else None
        if offer is not None:
            source = str(offer)
        pools.append(Pool(cluster, request.most if bare else cluster.num_gpus, price, source))
    if problems:
        raise UserError(problems)
    return pools
