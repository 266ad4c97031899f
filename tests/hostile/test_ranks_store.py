"""The ranks' store is reached from this machine alone, and nothing that is written there ends a run as success."""

import errno
import json
import socket
import threading
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given

from l4spec.runtime.parallel.run.failure_detection import Address, Failure, listening_store, within
from tests.hostile.draws import RANDOMS, draws, size

LISTEN = "0A"
LOCAL = "0100007F"
ODD: tuple[Any, ...] = (None, 0, -1, 256, True, False, 1.0, 10**30, "0", "", "x" * 50_000, [], {}, float("nan"))


def message(random: Random) -> bytes:
    """What somebody may write under the key of a failure."""
    data: Any = {"message": "error: x", "code": 4, "reporter": 1}
    match random.choice(["field", "field", "missing", "bytes", "other"]):
        case "field":
            data[random.choice(["message", "code", "reporter", "extra"])] = random.choice(ODD)
        case "missing":
            del data[random.choice(sorted(data))]
        case "bytes":
            return random.randbytes(size(random, 300))
        case _:
            data = random.choice(ODD)
    return json.dumps(data).encode()


@draws(300)
@given(RANDOMS)
def test_whatever_stands_under_a_failure_is_one(random: Random) -> None:
    failure = Failure.read(message(random))
    assert 0 < failure.code < 256
    assert isinstance(failure.message, str)
    assert len(failure.message) <= 10_000


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="what listens is read from /proc")
def test_the_store_listens_on_this_machine_alone() -> None:
    store = listening_store("127.0.0.1", 0, 5.0)
    port = f"{store.port:04X}"
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[1].endswith(f":{port}") and row[3] == LISTEN]
    assert listening == [f"{LOCAL}:{port}"]
    store.set("key", "value")
    assert Address("127.0.0.1", store.port, is_kept_by_launcher=True).open(1, 5.0).get("key") == b"value"


def test_a_port_that_is_taken_is_reported_as_such() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OSError, match="in use") as error:
            listening_store("127.0.0.1", other.getsockname()[1], 5.0)
        assert error.value.errno == errno.EADDRINUSE


def test_a_peer_that_accepts_and_is_silent_is_waited_for_no_longer_than_was_asked() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = Address("127.0.0.1", silent.getsockname()[1], is_kept_by_launcher=True)
        began = time.monotonic()
        with pytest.raises((TimeoutError, RuntimeError)):
            within(2.0, lambda: address.open(1, 1.0))
        assert time.monotonic() - began < 20
    assert threading.active_count() < 50
