"""What programs rely on: the keys of JSON documents and the options of commands.

python tests/contracts/interface.py record     keep what there is today in interface.json
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

RECORD = Path(__file__).with_name("interface.json")


def documents() -> dict[str, type]:
    """The JSON documents by the key that holds their version."""
    from l4spec.report.accuracy import AccuracyReport
    from l4spec.report.compare import Comparison
    from l4spec.report.model_table import ModelTable
    from l4spec.verification.claims import Report
    from l4spec.verification.measure import MeasureReport
    from planners.plan_types import Plan
    from planners.recipes.recipe_plan import RecipePlan
    from planners.search.search_types import SearchAnswer
    from planners.simulate.scenario_plan import ScenarioPlan
    from planners.sweep.sweep_types import SweepTable
    from planners.sweep.vocabularies import VocabularyTable

    return {
        "l4spec_plan": Plan,
        "l4spec_compare": Comparison,
        "l4spec_search": SearchAnswer,
        "l4spec_sweep": SweepTable,
        "l4spec_vocabulary": VocabularyTable,
        "l4spec_model_table": ModelTable,
        "l4spec_verify": Report,
        "l4spec_measure": MeasureReport,
        "l4spec_accuracy": AccuracyReport,
        "l4spec_recipe_plan": RecipePlan,
        "l4spec_scenario_plan": ScenarioPlan,
    }


def keys(schema: dict[str, Any], root: dict[str, Any], path: str = "") -> Iterator[str]:
    """Every key of a document as a path: `latency.decode.by_kind.name`."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    for name, inner in schema.get("properties", {}).items():
        yield path + name
        yield from keys(inner, root, f"{path}{name}.")
    for inner in (*schema.get("anyOf", ()), *schema.get("prefixItems", ())):
        yield from keys(inner, root, path)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from keys(schema[name], root, path)


def interface() -> dict[str, Any]:
    """Keys of every document and options of every command, as they are today."""
    from l4spec.cli import app

    today: dict[str, Any] = {"documents": {}, "options": {}}
    for version, model in documents().items():
        schema = model.model_json_schema(mode="serialization")  # type: ignore[attr-defined]
        number = schema["properties"][version]["default"]
        today["documents"][version] = {"version": number, "keys": sorted(set(keys(schema, schema)))}
    group = typer.main.get_group(app)
    context = group.context_class(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        today["options"][name] = sorted({flag for parameter in command.params for flag in parameter.opts})
    return today


if __name__ == "__main__":
    assert sys.argv[1:] == ["record"], __doc__
    RECORD.write_text(json.dumps(interface(), indent=1) + "\n", encoding="utf-8")
