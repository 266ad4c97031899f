"""Published facts beside the mathematics, for `show`, `compare` and reports."""

from collections.abc import Iterator, Sequence

from l4spec.report.page import Block, Facts, Lines, Section, Table
from l4spec.report.quantities import share, whole
from l4spec.spec.about import About, PublishedScore


def about_sections(about: About) -> Iterator[Section]:
    """Licence, languages, dates, modalities; the published scores; those that speak against the advertised context."""
    yield Section("About", (Facts(tuple(_facts(about))),))
    if about.evaluations:
        sources = list(dict.fromkeys(each.source or about.source for each in about.evaluations))
        rows = tuple(
            (
                each.benchmark,
                each.checkpoint or "-",
                _conditions(each),
                f"{each.score:g}",
                str(sources.index(each.source or about.source) + 1),
            )
            for each in about.evaluations
        )
        headers = ("benchmark", "weights", "metric and conditions", "score", "source")
        numbered = Lines(tuple(f"{number}: {source}" for number, source in enumerate(sources, 1)))
        blocks: tuple[Block, ...] = (Table(headers, rows, "lllrr"), numbered)
        yield Section("Published evaluations", blocks)
    against = tuple(contradictions(about))
    if against:
        yield Section("Against the advertised context", (Lines(against),))


def contradictions(about: About) -> Iterator[str]:
    """The scores that speak against the advertised context, each in a sentence with the share of it that was tried."""
    for each in about.evaluations:
        if each.contradicts_context and each.context and about.advertised_context:
            yield (
                f"{each.benchmark}: {each.score:g} ({each.metric}) at {whole(each.context)} tokens, "
                f"{share(each.context, about.advertised_context)} of the {whole(about.advertised_context)} advertised"
            )


def _facts(about: About) -> Iterator[tuple[str, str]]:
    if about.released or about.announced:
        day = about.released or f"never; announced {about.announced}"
        yield "released", day
    if about.license:
        yield "licence", f"{about.license} ({about.license_url})" if about.license_url else about.license
    if about.languages or about.pretraining_languages:
        yield "languages", languages(about)
    if about.languages:
        yield "supported", ", ".join(about.languages)
    yield from modalities(about)
    if about.knowledge_cutoff:
        yield "knowledge until", about.knowledge_cutoff
    if about.training_tokens:
        yield "trained on", f"about {about.training_tokens / 1e12:g}T tokens"
    if about.advertised_context:
        yield "advertised context", f"{whole(about.advertised_context)} tokens"
    for each in about.images:
        yield "images", f"{whole(each.count)} {each.conditions} ({each.source or about.source})"
    yield "source", about.source


def languages(about: About) -> str:
    """Numbers of supported languages and of languages in pre-training, as text."""
    supported = f"{len(about.languages)} supported" if about.languages else ""
    trained = f"{about.pretraining_languages} in pre-training" if about.pretraining_languages else ""
    return ", ".join(filter(None, (supported, trained)))


def modalities(about: About) -> Iterator[tuple[str, str]]:
    """Rows of input and output modalities, where they are known."""
    if about.inputs:
        yield "input", ", ".join(about.inputs)
    if about.outputs:
        yield "output", ", ".join(about.outputs)


def _conditions(each: PublishedScore) -> str:
    at = f"{whole(each.context)} tokens" if each.context else ""
    return "; ".join(filter(None, (each.metric, each.conditions, at)))


def compared_sections(models: Sequence[tuple[str, About | None]]) -> Iterator[Section]:
    """Published facts about models, side by side; nothing if no model has any.

    Scores share a row only if benchmark, weights, metric, conditions and length are the same.
    """
    known = [(name, about) for name, about in models if about is not None]
    if not known:
        return
    headers = ("", *(name for name, _ in models))
    rows = [(label, *(_cell(about, label) for _, about in models)) for label in _LABELS]
    published = tuple(row for row in rows if any(cell != "-" for cell in row[1:]))
    yield Section("Published", (Table(headers, published),))
    scores = tuple(_scores(models))
    if scores:
        yield Section("Published evaluations", (Table(("benchmark", *headers[1:]), scores),))
    against = tuple(f"{name}: {line}" for name, about in known for line in contradictions(about))
    if against:
        yield Section("Against the advertised context", (Lines(against),))
    sources = dict.fromkeys(
        each or about.source for _, about in known for each in (None, *(one.source for one in about.evaluations))
    )
    yield Section("Sources of what is published", (Lines(tuple(sources)),))


_LABELS = ("released", "licence", "languages", "input", "output", "knowledge until", "trained on", "advertised context")


def _cell(about: About | None, label: str) -> str:
    if about is None:
        return "-"
    if label == "licence":
        return about.license or "-"
    return dict(_facts(about)).get(label, "-")


def _scores(models: Sequence[tuple[str, About | None]]) -> Iterator[tuple[str, ...]]:
    tables = [{_row(each): each for each in about.evaluations} if about else {} for _, about in models]
    for row in dict.fromkeys(row for table in tables for row in table):
        yield (row, *(f"{table[row].score:g}" if row in table else "-" for table in tables))


def _row(each: PublishedScore) -> str:
    return f"{each.benchmark} ({'; '.join(filter(None, (each.checkpoint, _conditions(each))))})"


__all__ = ["about_sections", "compared_sections", "contradictions"]
