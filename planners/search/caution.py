"""Comparison of estimated times: a deployment unlike every measured row is estimated with the error of one row in ten.

The smallest of many estimates is too small, most of all for deployments far from the measured ones.
"""

from l4spec.sharding.layout import Layout
from planners.deployment import Deployment
from planners.timing.efficiency import serving_efficiency, training_efficiency

SHARED_GRADIENTS = 2
"""The ZeRO stage from which more than optimizer states are shared."""


def errors_of(deployment: Deployment) -> tuple[float, float]:
    """The relative errors that half and a tenth of the measured rows exceed; 0 where there are none."""
    cluster = deployment.cluster
    assert cluster is not None, "time is of GPUs"
    if deployment.setting.train is not None:
        training = training_efficiency(cluster.hardware.name)
        error = training.error("step_time") if training is not None else None
    else:
        serving = serving_efficiency(deployment.setting.engine.name, deployment.request.factors)
        error = serving.error("tpot") if serving is not None else None
    return (error.median, error.p90) if error is not None else (0.0, 0.0)


def caution(deployment: Deployment, layout: Layout, zero_stage: int = 0) -> float:
    """Factor on an estimate before it is compared.

    No measured row serves by a pipeline, and none trains by Megatron with ZeRO 2 or 3 between hosts.
    """
    if deployment.setting.train is None:
        unlike = layout.pp > 1
    else:
        unlike = zero_stage >= SHARED_GRADIENTS and layout.num_devices // layout.pp > deployment.gpus_per_host
    return 1 + errors_of(deployment)[1] if unlike else 1.0
