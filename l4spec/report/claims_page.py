"""Text and Markdown of `l4spec verify`: the verdict, then every claim with its computed value."""

from l4spec.report import quantities
from l4spec.report.page import Lines, Page, Section, Table, Tone
from l4spec.report.plan_page import estimate_notes
from l4spec.units import gib
from l4spec.verification.claims import Check, Report, Value


def verify_page(report: Report) -> Page:
    """The verdict, then every claim."""
    failed = sum(not check.holds for check in report.checks)
    if not report.checks:
        sentence = f"{report.model} makes no claims"
    elif failed:
        sentence = f"{report.model}: {failed} of {len(report.checks)} claims do not hold"
    else:
        sentence = f"{report.model}: all {len(report.checks)} claims hold"
    tone: Tone = "" if not report.checks else "bad" if failed else "good"
    sections = [Section("", (Lines((sentence,), tone),))]
    if report.checks:
        headers = ("claim", "on", "claimed", "computed", "difference", "holds", "source")
        rows = tuple(_cells(check) for check in report.checks)
        sections.append(Section("", (Table(headers, rows, "llrrrll", 50),)))
    notes = tuple(f"{check.quantity.replace('_', ' ')}: {check.note}" for check in report.checks if check.note)
    if notes:
        sections.append(Section("Notes", (Lines(notes),)))
    notes_on_estimates = estimate_notes(report.estimated, report.estimates)
    if notes_on_estimates:
        sections.append(Section("", (Lines(notes_on_estimates),)))
    return tuple(sections)


def _cells(check: Check) -> tuple[str, ...]:
    change = "-" if check.difference is None else quantities.difference(check.difference)
    verdict = "yes" if check.holds else "NO"
    mark = quantities.Figures(check.rests_on_estimates).mark
    claimed, computed = _shown(check.quantity, check.claimed), mark + _shown(check.quantity, check.computed)
    return (check.quantity.replace("_", " "), check.condition, claimed, computed, change, verdict, check.source)


def _shown(quantity: str, value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    number = round(value)
    if "per_second" in quantity:
        return f"{quantities.flops(number)}/s"
    if quantity.endswith("per_token") and "bytes" in quantity:
        return quantities.exact_bytes(number)
    if "_bytes" in quantity:
        return gib(number)
    if "params" in quantity:
        return quantities.count(number)
    return quantities.flops(number) if "flops" in quantity else quantities.whole(number)
