"""Keys of JSON documents and options of commands stay; more may come."""

import json

from tests.contracts.interface import RECORD, documents, interface


def test_no_option_of_a_command_goes_away() -> None:
    recorded, today = json.loads(RECORD.read_text(encoding="utf-8"))["options"], interface()["options"]
    gone = {name: sorted(set(flags) - set(today.get(name, ()))) for name, flags in recorded.items()}
    assert not {name: flags for name, flags in gone.items() if flags}
    assert sum(map(len, recorded.values())) > 200


def test_a_key_of_a_document_stays_as_long_as_its_version() -> None:
    recorded, today = json.loads(RECORD.read_text(encoding="utf-8"))["documents"], interface()["documents"]
    assert recorded.keys() <= today.keys()
    for name, document in recorded.items():
        if today[name]["version"] == document["version"]:
            assert not set(document["keys"]) - set(today[name]["keys"]), name
    assert len(recorded["l4spec_plan"]["keys"]) > 150


def test_every_document_carries_its_version_first() -> None:
    for version, model in documents().items():
        assert next(iter(model.model_json_schema()["properties"])) == version  # type: ignore[attr-defined]
