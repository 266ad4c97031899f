"""Simulation of a deployment under load, request by request.

    requests    sizes, times and outcome of one request
    cache/      blocks of the KV cache: pool, shared prefixes, laws by which a sequence's blocks grow
    engines/    schedulers of vLLM, SGLang and TensorRT-LLM, one policy each, by their own documented rules
    times/      seconds of a step: from the planner's step model, from tables of kernels, or fixed
    rank        one scheduler with its cache and its running batch
    replica     ranks that step together
    cluster     replicas behind a router, and the heap of events over them
    workload/   arrivals, lengths, prefixes, sessions, traces
    results     times of every request, curves, percentiles

The clock counts integer nanoseconds, and everything drawn comes from one seed: the same scenario gives the same bytes.
"""
