"""A plan from a name, a path, a spec or a graph; what it says of itself in a session."""

import pickle
from html.parser import HTMLParser
from pathlib import Path

import pytest

import l4spec
import planners
from l4spec.errors import UserError
from planners.plan_types import Plan


def test_a_plan_is_of_a_name_a_path_a_spec_or_a_graph(tmp_path: Path) -> None:
    spec = l4spec.load("tiny/scout")
    path = tmp_path / "mine.yaml"
    path.write_text("l4spec: 1\nextends: tiny/scout\n", encoding="utf-8")
    plans = [
        planners.plan(model, gpus="1xH100") for model in ("tiny/scout", path, str(path), spec, l4spec.compile(spec))
    ]
    assert len({(plan.params.total, plan.memory_per_device.total_bytes) for plan in plans}) == 1
    assert plans[0] == plans[3] == plans[4]


@pytest.mark.parametrize("model", [3, None, ["scout"]])
def test_what_names_no_model_is_refused(model: object) -> None:
    with pytest.raises(UserError, match="expected a model, found"):
        planners.plan(model)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("scout", {"gpus": "8xH100"}),
        ("scout", {"gpus": "1xH100"}),
        ("scout", {}),
        ("behemoth", {"gpus": "64xB200", "quantization": "fp8"}),
        ("scout", {"gpus": "64xH100", "mode": "train", "batch": 64, "zero_stage": 3}),
    ],
)
def test_a_plan_shows_itself_in_five_lines_and_a_small_table(model: str, options: dict[str, str]) -> None:
    plan = planners.plan(model, **options)
    lines = repr(plan).splitlines()
    assert len(lines) == 5
    assert all(len(line) <= 125 for line in lines)
    assert str(plan) == repr(plan)
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(plan._repr_html_())
    assert tags.count("tr") == 4
    assert set(tags) <= {"table", "caption", "tr", "th", "td"}


def test_a_plan_lists_its_own_names() -> None:
    names = [name for name in dir(planners.plan("scout", gpus="8xH100")) if not name.startswith("_")]
    assert {"to_dict", "explain", "report", "layouts", "fits", "latency", "model_dump_json"} <= set(names)
    assert not {"parse_raw", "construct", "from_orm", "schema_json", "model_rebuild"} & set(names)
    assert len(names) < 45


def test_a_plan_tells_what_the_command_line_tells() -> None:
    plan = planners.plan("scout", gpus="8xH100")
    assert "Where the memory of the fullest h100-sxm goes" in plan.report()
    assert "Legal layouts" in plan.report(verbose=True)
    assert "108,641,793,536" in plan.explain()
    assert max(map(len, plan.report(verbose=True, width=80).splitlines())) <= 80


def test_a_document_of_a_plan_is_the_plan_without_its_arithmetic() -> None:
    plan = planners.plan("tiny/scout", gpus="1xH100")
    again = Plan.model_validate(plan.to_dict())
    assert again == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert again.report() == plan.report()
    with pytest.raises(UserError, match="read from a document"):
        again.explain()
    assert planners.plan("tiny/scout", gpus="2xH100") != plan


def test_everything_public_is_listed_and_nothing_else() -> None:
    assert set(dir(planners)) >= {"plan", "Plan", "PlanRequest", "TrainSetting", "Layout"}
    assert all(hasattr(planners, name) for name in dir(planners))
    assert not {"Any", "Path", "import_module"} & {*dir(planners), *dir(l4spec)}


def test_a_module_is_built_of_a_name() -> None:
    model = l4spec.build("tiny/scout", device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == planners.plan("tiny/scout").params.total
