"""The document of `l4spec sweep`: a row of cost for each variant."""

from typing import Any, Literal

from planners.frozen import Frozen


class SweepRow(Frozen):
    """One variant: the values of its fields as a document writes them, and its cost. Unknown numbers are null.

    `kv_bytes_per_token` counts every layer. `usd_per_million_output_tokens` and `train_usd` are at the price in
    `prices`. `extrapolated`: the factors of the serving times were fitted elsewhere. `problem` is the reason why a
    variant is invalid or cannot be planned.
    """

    values: dict[str, Any]
    widen: float
    model: str | None = None
    context: int | None = None
    batch: int | None = None
    params: int | None = None
    active_params: int | None = None
    flops_per_token: int | None = None
    weight_bytes: int | None = None
    kv_bytes_per_token: int | None = None
    fits: bool | None = None
    layout: str | None = None
    bytes_per_gpu: int | None = None
    max_context: int | None = None
    ttft_seconds: float | None = None
    time_per_output_token_seconds: float | None = None
    tokens_per_second_per_gpu: float | None = None
    usd_per_million_output_tokens: float | None = None
    extrapolated: bool | None = None
    train_fits: bool | None = None
    train_layout: str | None = None
    train_batch: int | None = None
    train_mfu: float | None = None
    train_gpu_hours: float | None = None
    train_usd: float | None = None
    problem: str | None = None


class SweepTable(Frozen):
    """Every variant in the order of its values, the last list varying fastest.

    `serving` and `training` are the options of both plans, as `planners.PlanRequest` takes them; `prices` names the
    sources of prices.
    """

    l4spec_sweep: Literal[1] = 1
    model: str
    paths: tuple[str, ...]
    serving: dict[str, Any]
    training: dict[str, Any] | None
    rows: tuple[SweepRow, ...]
    prices: tuple[str, ...]

    def records(self) -> list[dict[str, Any]]:
        """A flat mapping a row, with a column for each field that varies: `pandas.DataFrame` and polars take it."""
        return [{**row.values, **row.model_dump(exclude={"values"})} for row in self.rows]
