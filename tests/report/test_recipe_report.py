"""The report of a recipe: every number opens its formula, source and error, and the formulas give the numbers."""

import re

import pytest

from l4spec.report.document_reports import recipe_report
from l4spec.report.page import Details, Facts, Page, Section, Table, to_text
from l4spec.spec.recipe.load import load_recipe
from planners.recipes.cost import PlannedRecipe, RecipeOptions, graph_of, planned_recipe

PARTS = {"formula", "source", "error"}


def report_of(name: str, options: RecipeOptions) -> tuple[PlannedRecipe, Page]:
    loaded = load_recipe(name)
    planned = planned_recipe(loaded, options)
    return planned, recipe_report(planned, loaded, graph_of(loaded))


def opened(page: Page, title: str) -> dict[str, dict[str, str]]:
    """By label of a section's numbers, the facts that a click shows."""
    (section,) = [section for section in page if section.title == title]
    return {block.label: facts_of(block) for block in section.blocks if isinstance(block, Details)}


def facts_of(block: Details) -> dict[str, str]:
    facts = [dict(inner.rows) for inner in block.blocks if isinstance(inner, Facts)]
    return {label: text for one in facts for label, text in one.items()}


@pytest.mark.parametrize("name", ["recipes/maverick", "recipes/posttrain", "recipes/fusion-scout"])
def test_every_number_opens_its_formula_its_source_and_its_error(name: str) -> None:
    planned, page = report_of(name, RecipeOptions("512xH100", 2.0))
    for phase in planned.cost.phases:
        numbers = opened(page, f"Every number of {phase.name}")
        expected = {"tokens", "steps", "FLOPs", "memory", "step", "speed", "rate of a GPU", "GPU-hours", "days", "cost"}
        assert expected <= set(numbers)
        for label, facts in numbers.items():
            assert label == "memory" or set(facts) >= PARTS, label
            assert all(facts.values()), label
    memory = next(block for section in page for block in section.blocks if getattr(block, "label", "") == "memory")
    assert isinstance(memory, Details)
    terms = [inner for inner in memory.blocks if isinstance(inner, Details)]
    assert {"weights", "gradients", "optimizer"} <= {term.label for term in terms}
    assert all(set(facts_of(term)) >= PARTS and "-" not in facts_of(term).values() for term in terms)


def test_the_formulas_give_the_numbers() -> None:
    planned, page = report_of("recipes/behemoth", RecipeOptions("32768xH100", 2.0))
    (phase,) = planned.cost.phases
    numbers = opened(page, "Every number of pretrain")
    match = re.fullmatch(r"([\d.]+) s × ([\d,.]+) steps × ([\d,]+) GPUs / 3,600 s", numbers["GPU-hours"]["formula"])
    assert match is not None
    seconds, steps, gpus = (float(text.replace(",", "")) for text in match.groups())
    assert phase.gpu_hours is not None
    # seconds are shown to a hundredth, steps to a tenth: half of each last digit
    rounded = 0.005 / seconds + 0.05 / steps
    assert seconds * steps * gpus / 3600 == pytest.approx(phase.gpu_hours, rel=rounded)
    match = re.fullmatch(r"2 B of bf16 × ([\d,]+) .* 12 B of adamw × ([\d,]+) .*", numbers["checkpoint"]["formula"])
    assert match is not None
    total, trained = (int(text.replace(",", "")) for text in match.groups())
    assert 2 * total + 12 * trained == phase.checkpoint_bytes
    assert total == planned.cost.total_params


def test_the_forward_pass_is_a_third_of_the_steps_flops() -> None:
    planned, page = report_of("recipes/maverick", RecipeOptions("512xH100"))
    for phase in planned.cost.phases:
        (section,) = [section for section in page if section.title == f"Every number of {phase.name}"]
        (flops,) = [block for block in section.blocks if isinstance(block, Details) and block.label == "FLOPs"]
        (table,) = [block for block in flops.blocks if isinstance(block, Table)]
        *rows, total = (int(row[-1].replace(",", "")) for row in table.rows)
        assert sum(rows) == total
        steps = phase.tokens / (phase.batch * phase.context)
        assert round(3 * total * steps) == pytest.approx(phase.model_flops, rel=1e-15)


def test_a_teacher_s_share_and_frozen_tensors_are_explained() -> None:
    planned, page = report_of("recipes/codistill", RecipeOptions("8xH100"))
    (phase,) = planned.cost.phases
    assert phase.teacher is not None
    numbers = opened(page, f"Every number of {phase.name}")
    assert f"/ {phase.teacher.students} students" in numbers["teacher passes"]["formula"]
    assert phase.teacher.teacher in numbers["GPU-hours"]["formula"]
    planned, page = report_of("recipes/fusion-scout", RecipeOptions())
    frozen = [phase for phase in planned.cost.phases if phase.trainable]
    assert frozen
    for phase in frozen:
        formula = opened(page, f"Every number of {phase.name}")["FLOPs"]["formula"]
        assert "gradients of weights that are trained" in formula


def test_what_nobody_has_published_is_not_called_exact_and_claims_are_judged() -> None:
    _, page = report_of("recipes/behemoth", RecipeOptions())
    text = to_text(page)
    assert "unknown in what nobody has published" in text
    claims = [section for section in page if section.title == "Claims"]
    assert len(claims) == 1
    assert "claims hold" in to_text((Section("", claims[0].blocks),))
    _, page = report_of("recipes/posttrain", RecipeOptions())
    assert not [section for section in page if section.title == "Claims"]
    assert opened(page, "Every number of rl")["tokens"]["error"] == "none, counted exactly"
    assert "step" not in opened(page, "Every number of rl")  # no GPUs: no time
