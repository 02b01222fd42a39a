"""docs/formats.md names every field of every native format, and its examples load."""

import re
from pathlib import Path

import pytest

from stagewright import cluster, graph, plan, value
from stagewright.cluster import Cluster
from stagewright.document import Record
from stagewright.pipedream_conf import Conf
from stagewright.schedule import Schedule
from stagewright.server_file import parse_servers

TEXT = (Path(__file__).parents[1] / "docs" / "formats.md").read_text()
SLOT = cluster.Slot


def example_after(heading: str) -> str:
    """Return the first block of code below a heading."""
    return TEXT.split(f"\n## {heading}\n")[1].split("```")[1].partition("\n")[2]


@pytest.mark.parametrize("module", [graph, cluster, plan, value])
def test_every_field_of_a_native_format_is_in_the_document(module: object) -> None:
    records = [
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Record) and item not in (Record, SLOT)
    ]
    assert records
    words = set(re.findall(r"[a-z_0-9]+", TEXT))
    missing = [
        f"{record.__name__}.{name}"
        for record in records
        for name in record.__struct_fields__
        if name not in words
    ]
    assert not missing


def test_the_examples_load(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(example_after("Cluster"))
    golden = Path(__file__).parent / "golden" / "cluster.v2.json"
    assert Cluster.load(tmp_path / "cluster.toml") == Cluster.load(golden)
    assert list(Schedule.parse(example_after("Schedule text")).rows) == [0, 1]
    assert len(parse_servers(example_after("SparsePipe's server file")).servers) == 1
    (tmp_path / "conf.json").write_text(example_after("PipeDream's conf JSONs"))
    assert Conf.load(tmp_path / "conf.json").ranks == ((0, 1, 2), (3,))
