"""Every published format of traces is read as a stream, and a malformed line is refused with its number."""

import json
from pathlib import Path

import pytest

from l4spec.errors import UserError
from planners.simulate.workload.traces import TraceEntry, format_by_first_line, read_trace, runs_of

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.9799600,3,8\n"
)
MOONCAKE = '{"timestamp": 0, "input_length": 1030, "output_length": 5, "hash_ids": [0, 1, 2]}\n' * 2
AGENTIC = (
    "trace,path,t,type,input_tokens,output_tokens,api_time,think_time,stop,hash_ranges\n"
    "a,0,0.0,n,640,9,7.3,0.0,tool_use,1-10\na,1/0,0.0,n,64,9,7.3,0.0,tool_use,90-90\n"
    "a,1/1,0.0,n,128,9,7.3,2.5,tool_use,90-91\na,2,19.0,n,704,8,9.2,12.0,end_turn,1-9 11-12\nb,0,0.0,s,64,1,,,,1-1\n"
)
BLIS = (
    "arrival_time,request_id,model,prompt,answer\n"
    f'5.0,r0,m,"{list(range(40))}","[1, 2]"\n6.5,r1,m,"{[*range(32), 99]}","[1]"\n'
)
REQUESTS = '{"request_id": "a", "input_toks": 7, "output_toks": 3, "arrival_time": 100.5}\n'
VLLM = json.dumps(
    {"input_lens": [5, 6], "output_lens": [1, 2], "start_times": [9.0, 8.0], "ttfts": [1, 2], "itls": [[], [3]]}
)


def entries(tmp_path: Path, text: str) -> list[TraceEntry]:
    path = tmp_path / "trace"
    path.write_text(text, encoding="utf-8")
    return list(read_trace(path, "auto"))


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (AZURE, "azure"),
        (MOONCAKE, "mooncake"),
        (AGENTIC, "agentic"),
        (BLIS, "blis"),
        (REQUESTS, "requests"),
        ("arrival_time_ns,input_toks,output_toks\n1,2,3\n", "requests"),
        (VLLM, "vllm"),
    ],
)
def test_a_trace_is_recognized_by_its_first_line(tmp_path: Path, text: str, form: str) -> None:
    (tmp_path / "trace").write_text(text, encoding="utf-8")
    assert format_by_first_line(tmp_path / "trace") == form


def test_times_lengths_and_prefixes_are_read(tmp_path: Path) -> None:
    assert [(e.arrival, e.prompt, e.output) for e in entries(tmp_path, AZURE)] == [(0, 4808, 10), (10**9, 3, 8)]
    assert entries(tmp_path, MOONCAKE)[0].runs == ((0, 3),)
    one, other = entries(tmp_path, BLIS)
    assert (one.prompt, one.output, other.arrival) == (40, 2, 1_500_000_000)
    assert one.runs == other.runs  # 32 tokens are equal, two blocks of 16
    first, second = entries(tmp_path, VLLM)
    assert (first.prompt, first.measured, second.arrival) == (6, (2 * 10**9, 5 * 10**9), 10**9)


def test_times_have_zones_and_any_number_of_digits(tmp_path: Path) -> None:
    """Azure's trace of 2024 names its zone, and writes whole seconds without a fraction."""
    times = ("2024-05-10 00:00:00.009930+00:00", "2024-05-10 00:00:07+00:00", "2024-05-10T02:00:08.1234567+02:00")
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"{time},5,5\n" for time in (*times, "2024-05-10 00:00:09")
    )
    assert [entry.arrival for entry in entries(tmp_path, text)] == [0, 6_990_070_000, 8_113_526_700, 8_990_070_000]


def test_arrivals_count_from_the_first_and_are_in_order(tmp_path: Path) -> None:
    """A trace in another order would arrive all at once: it is refused. Moments of a server's log are none."""

    def mooncake(*times: int) -> str:
        return "".join(json.dumps({"timestamp": t, "input_length": 5, "output_length": 5}) + "\n" for t in times)

    late = [
        entry.arrival for entry in entries(tmp_path, mooncake(1_700_000_000_000, 1_700_000_002_000, 1_700_000_001_900))
    ]
    assert late == [0, 2 * 10**9, 2 * 10**9]
    for text in (mooncake(60_000, 0), AZURE + "2023-11-16 18:10:00,1,2\n"):
        with pytest.raises(UserError, match="sort the trace by arrival"):
            entries(tmp_path, text)


def test_sub_agents_begin_when_the_request_before_them_has_ended(tmp_path: Path) -> None:
    first, sub, next_sub, second, other = entries(tmp_path, AGENTIC)
    assert (first.after, sub.after, next_sub.after, second.after, other.after) == (None, 0, 1, 0, None)
    assert (next_sub.think, second.think) == (2_500_000_000, 12 * 10**9)
    assert [stop - start for start, stop in second.runs] == [9, 2]
    assert other.runs != sub.runs  # hashes are a session's own


def test_consecutive_hashes_are_one_run() -> None:
    assert runs_of([0, 1, 2, 14, 15, 3]) == ((0, 3), (14, 16), (3, 4))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (AZURE + "yesterday,1,2\n", "trace:4: expected a time like"),
        (AZURE + "2023-11-16 18:17:03.97,x,2\n", "trace:4: expected ContextTokens of at least 0, found 'x'"),
        (AZURE + "2023-11-16 18:17:03.97,1\n", "trace:4: expected 3 fields"),
        (MOONCAKE + "{\n", "trace:3: no JSON"),
        (MOONCAKE + '{"timestamp": 0, "input_length": 5}\n', "trace:3: missing field output_length"),
        (MOONCAKE.replace("[0, 1, 2]", "7"), "trace:1: expected hash_ids as a list"),
        (AGENTIC.replace("1-10", "10-1"), "trace:2: expected a range of hashes of at least 10"),
        (AGENTIC.replace("2.5", "soon"), "trace:4: expected think_time in seconds"),
        (BLIS.replace("[1, 2]", "1, 2"), "trace:2: expected a list of token ids"),
        (REQUESTS.replace("100.5", "-1"), "trace:1: expected arrival_time in seconds"),
        (VLLM.replace("start_times", "starts"), "expected lists input_lens, output_lens and start_times"),
        ("a,b\n1,2\n", "trace:1: no known trace begins with 'a,b'"),
    ],
)
def test_a_malformed_line_is_refused_with_its_number(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UserError, match="trace") as caught:
        entries(tmp_path, text)
    assert expected in str(caught.value)
