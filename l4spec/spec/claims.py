"""Published claims about a model, with their sources, which `l4spec verify` compares with the plan."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from l4spec.layers.base import Count, Size, Spec

Quantity = Literal[
    "total_params",
    "active_params",
    "active_params_without_embedding",
    "vision_params",
    "num_layers",
    "num_experts",
    "weight_bytes",
    "kv_cache_bytes",
    "kv_cache_bytes_per_token",
    "kv_cache_bytes_per_layer",
    "flops_per_token",
    "tokens_per_tile",
    "fits",
    "max_context",
    "train_flops_per_second_per_gpu",
]

MAX_CLAIMS = 128
"""Claims of a document, each of which is planned: all within two seconds. Published models have some thirty."""


class Claim(Spec):
    """One published statement; `value` in base units (parameters, bytes, FLOPs, tokens), true or false for `fits`."""

    quantity: Quantity
    """Quantity that is claimed."""
    value: bool | int | Annotated[float, Field(ge=0)]
    """The claimed value."""
    source: Annotated[str, Field(min_length=1)]
    """Source of the claim."""
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Relative difference up to which the claim holds; published figures are rounded."""
    on: str | None = None
    """GPUs that the claim is about, as `1xH100-80GB`."""
    quantization: str | None = None
    """Scheme that the claim is about; bf16 when left out."""
    context: Count | None = None
    """Context in tokens that the claim is about."""
    batch: Size | None = None
    """Sequences at a time that the claim is about; 1 when left out."""
    kv_dtype: str | None = None
    """Number format of the cache; bf16 when left out."""
    engine: str | None = None
    """Engine whose cache policy the claim assumes."""
    tp: Size | None = None
    """Tensor-parallel degree that the claim assumes."""
    precision: str | None = None
    """Number format of matmuls that a claim of training is about; bf16 when left out."""
    note: str | None = None
    """Further remarks."""

    @model_validator(mode="after")
    def _can_be_checked(self) -> Self:
        if self.quantity == "fits" and (self.on is None or not isinstance(self.value, bool)):
            raise ValueError("a claim that something fits needs `on` and a value of true or false")
        if self.quantity != "fits" and isinstance(self.value, bool):
            raise ValueError(f"a claim of {self.quantity} needs a number, found {str(self.value).lower()}")
        if self.value < 0:
            raise ValueError(f"a claim needs a value of at least 0, found {self.value}")
        trains = self.quantity == "train_flops_per_second_per_gpu"
        if trains and self.on is None:
            raise ValueError("a claim of a training rate needs `on`")
        if self.precision is not None and not trains:
            raise ValueError(f"precision is that of training, and a claim of {self.quantity} is of none")
        for name in ("quantization", "kv_dtype", "engine"):
            if trains and getattr(self, name) is not None:
                hint = "; precision is the format of its matmuls" if name == "quantization" else ""
                raise ValueError(f"{name} is that of serving, and a training rate has none{hint}")
        return self


__all__ = ["Claim", "Quantity"]
