"""Every version of every format has a file that this program must go on reading."""

from pathlib import Path
from typing import Protocol

import msgspec
import pytest

from stagewright.cluster import CLUSTER_FORMAT, Cluster
from stagewright.document import Format, InputError
from stagewright.graph import GRAPH_FORMAT, LayerGraph
from stagewright.plan import PLAN_FORMAT, Plan

GOLDEN = Path(__file__).parent / "golden"


class Document(Protocol):
    """What the three file nouns have in common."""

    @classmethod
    def load(cls, path: Path) -> "Document": ...
    def save(self, path: Path) -> None: ...


DOCUMENTS: list[tuple[str, type[Document], Format]] = [
    ("graph", LayerGraph, GRAPH_FORMAT),
    ("cluster", Cluster, CLUSTER_FORMAT),
    ("plan", Plan, PLAN_FORMAT),
]


@pytest.mark.parametrize(("name", "noun", "form"), DOCUMENTS)
def test_the_current_version_is_saved_as_it_was_loaded(
    name: str, noun: type[Document], form: Format, tmp_path: Path
) -> None:
    golden = GOLDEN / f"{name}.v{form.version}.json"
    noun.load(golden).save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == golden.read_bytes()


@pytest.mark.parametrize(("name", "noun", "form"), DOCUMENTS)
def test_every_version_has_a_golden_file_that_loads(
    name: str, noun: type[Document], form: Format
) -> None:
    for version in range(1, form.version + 1):
        noun.load(GOLDEN / f"{name}.v{version}.json")


@pytest.mark.parametrize(("name", "noun", "form"), DOCUMENTS)
def test_a_newer_version_is_refused_with_both_numbers(
    name: str, noun: type[Document], form: Format, tmp_path: Path
) -> None:
    content = msgspec.json.decode((GOLDEN / f"{name}.v{form.version}.json").read_bytes())
    content["version"] = form.version + 7
    newer = tmp_path / "newer.json"
    newer.write_bytes(msgspec.json.encode(content))
    with pytest.raises(InputError) as caught:
        noun.load(newer)
    assert str(newer) in str(caught.value)
    assert f"version {form.version + 7} is newer than version {form.version}" in str(caught.value)


def test_the_toml_and_the_json_of_a_cluster_are_the_same_cluster() -> None:
    for version in range(1, CLUSTER_FORMAT.version + 1):
        toml, json = (GOLDEN / f"cluster.v{version}.{suffix}" for suffix in ("toml", "json"))
        assert Cluster.load(toml) == Cluster.load(json)
