"""Scenarios written in a test, parsed and served."""

from typing import Any

from l4spec.spec.document import read_text
from l4spec.spec.document_kinds import parse_as
from l4spec.spec.scenario import Scenario
from l4spec.spec.scenario.references import with_models
from planners.simulate.run import Outcome, Simulation

HEAD = "l4spec: 1\nkind: scenario\nname: test\n"
STEPS = "times: {kind: fixed, step: 10 ms}"


def serve(text: str, **run: Any) -> Outcome:
    """The outcome of a scenario whose head is left out."""
    return simulation(text).run(**run)


def simulation(text: str) -> Simulation:
    """A scenario ready to run."""
    document = read_text(HEAD + text, "test.yaml")
    return Simulation(with_models(parse_as(document, Scenario), document))
