"""Report of `simulate --fit`: errors of the fit, and its factors as a file that plan and simulate take."""

from planners.simulate.fit import Errors, Fit


def fit_summary(fit: Fit) -> str:
    """Errors on the requests of the fit and on the others, and the factors that the run does not determine."""
    lines = [f"fitted on {_errors(fit.seen)}"]
    lines.append(f"judged on {_errors(fit.unseen)}" if fit.unseen else "no other request is left to judge it on")
    if fit.undetermined:
        names = ", ".join(fit.undetermined)
        lines.append(f"not determined by this run, so left near {fit.prior.name}'s: {names}")
    return "\n".join(lines)


def _errors(errors: Errors) -> str:
    return (
        f"{errors.requests} requests: end-to-end error {errors.e2e:.1%} (bias {errors.e2e_bias:+.1%}), "
        f"median error to first token {errors.ttft:.1%}"
    )


def factors_file(fit: Fit) -> str:
    """The factors as YAML of the catalogue."""
    import yaml

    data = fit.factors.model_dump(mode="json")
    data = {key: value for key, value in data.items() if value not in ([], None)}
    head = "# Written by `l4spec simulate --fit`; use it by `--factors FILE` or `times: {kind: spec, factors: FILE}`.\n"
    return head + str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110))
