"""`l4spec plan --explain`: each number's arithmetic with the spec's own values, and the source of every constant."""
from l4spec.report.page import Page
def explain_page(graph, plan) -> Page: return ()
