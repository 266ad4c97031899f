"""Exports of a simulation: one CSV row per request, and a timeline for Perfetto."""

import csv
import json
from collections.abc import Iterator, Sequence
from io import StringIO
from typing import Any

from planners.simulate.recorder import Recorder
from planners.simulate.requests import Request

COLUMNS = (
    *("request", "arrival_s", "prompt_tokens", "output_tokens", "cached_tokens", "server", "outcome"),
    *("queued_s", "ttft_s", "tpot_s", "e2e_s", "preemptions", "session"),
)
_NS = 1e9
_US = 1e3


def requests_csv(requests: Sequence[Request]) -> str:
    """One line per request, times in seconds; times of events that did not happen are empty."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for request in sorted(requests, key=lambda r: r.number):
        done = request.outcome == "finished"
        times = (
            (request.scheduled_at - request.arrival) / _NS if request.scheduled_at >= 0 else "",
            request.ttft / _NS if request.first_token_at >= 0 else "",
            request.tpot / _NS if done else "",
            request.e2e / _NS if done else "",
        )
        head = (request.number, request.arrival / _NS, request.prompt, request.output, request.cached_tokens)
        tail = (request.preemptions, request.session if request.session >= 0 else "")
        writer.writerow((*head, request.server if request.server >= 0 else "", request.outcome, *times, *tail))
    return out.getvalue()


def timeline(requests: Sequence[Request], recorder: Recorder) -> str:
    """A trace in Chrome's format: a track of each server with its requests, waiting, prefilling and decoding."""
    events = [*_slices(requests), *_counters(recorder)]
    return json.dumps({"displayTimeUnit": "ms", "traceEvents": events}, separators=(",", ":"))


def _slices(requests: Sequence[Request]) -> Iterator[dict[str, Any]]:
    for request in requests:
        marks = [
            ("waiting", request.arrival, request.scheduled_at),
            ("prefill", request.scheduled_at, request.first_token_at),
            ("decode", request.first_token_at, request.last_token_at),
        ]
        for name, begin, end in marks:
            if begin >= 0 and end >= begin:
                common = {"pid": max(request.server, 0), "id": request.number, "cat": "request"}
                tokens = {"prompt": request.prompt, "output": request.output, "cached": request.cached_tokens}
                yield {"ph": "b", "name": name, "ts": begin / _US, "args": tokens, **common}
                yield {"ph": "e", "name": name, "ts": end / _US, **common}


def _counters(recorder: Recorder) -> Iterator[dict[str, Any]]:
    for now, server, running, waiting, used in zip(*recorder.states, strict=True):
        values = {"running": running, "waiting": waiting, "blocks": used}
        yield {"ph": "C", "name": "state", "pid": server, "ts": now / _US, "args": values}
