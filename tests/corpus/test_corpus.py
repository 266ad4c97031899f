"""What the command line prints today is what it printed at the start commit, but for what is published as changed."""

from pathlib import Path

import pytest

from tests.corpus import corpus, deviations

ROOT = Path(__file__).parents[2]
QUICK = 89
"""Every how manyth document is made anew by default; the `slow` test makes all."""
LARGEST_BYTES = 1_000_000


def test_the_corpus_holds_every_spec_on_every_hardware_in_every_scheme_and_engine() -> None:
    start = corpus.read(corpus.START)
    specs = {case.split()[1] for case in start if case.startswith("verify ")}
    assert len(specs) == 36
    assert set(start) == set(corpus.cases(tuple(sorted(specs))))
    served = [case for case in start if case.startswith("plan ") and " --engine " in case]
    assert len(served) >= 36 * len(corpus.HARDWARE) * len(corpus.SCHEMES) * len(corpus.ENGINES)
    assert sum(file.stat().st_size for file in (corpus.START, corpus.ACCEPTED) if file.exists()) < LARGEST_BYTES


def test_a_sample_of_all_documents_is_as_it_was() -> None:
    chosen = [case for case in list(corpus.read(corpus.START))[::QUICK] if not case.startswith("measure")]
    assert len(chosen) > 90
    assert not list(corpus.drifts(corpus.freeze(chosen)))


@pytest.mark.slow
def test_all_documents_are_as_they_were() -> None:
    assert not list(corpus.drifts(corpus.freeze(corpus.read(corpus.START))))


def test_a_changed_number_drifts() -> None:
    case = "plan scout --gpus 8xH100 --tiles 3"
    assert not list(corpus.drifts({case: corpus.run(case)}))
    other = corpus.run("plan scout --gpus 8xH100 --tiles 4")
    assert [drift.section for drift in corpus.drifts({case: other})] == ["rest"]


def test_every_accepted_change_is_explained() -> None:
    assert not list(corpus.unexplained(corpus.read(corpus.ACCEPTED)))


def test_what_is_renamed_added_or_changed_is_published() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    pairs = {**deviations.RENAMED_KEYS, **deviations.RENAMED_OPTIONS, **deviations.RENAMED_VALUES}
    for name in (*pairs, *pairs.values(), *deviations.ADDED_KEYS):
        assert f"`{name}`" in page, name
    for deviation in deviations.DEVIATIONS:
        assert deviation.reason in " ".join(changelog.split()), deviation.reason
