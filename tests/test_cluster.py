"""The cluster numbers its devices as torchrun does and refuses what does not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stagewright.cluster import Cluster, Link
from stagewright.document import InputError

GOLDEN = Path(__file__).parent / "golden" / "cluster.v2.json"


def set_in(*place: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets one field."""

    def spoil(content: Any) -> None:
        for step in place[:-1]:
            content = content[step]
        content[place[-1]] = value

    return spoil


def drop_links(content: dict[str, Any]) -> None:
    content["links"] |= {"between_servers": None, "matrix": []}


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (set_in("servers", value=[]), "servers is empty"),
        (set_in("servers", 1, "name", value="a"), "servers are named ['a', 'a']"),
        (set_in("servers", 1, "devices", value=[]), "server 'b' has no devices"),
        (
            set_in("servers", 1, "devices", 0, "type", value="huge"),
            "server 'b' has devices of type 'huge', which is not among the device_types",
        ),
        (set_in("servers", 1, "devices", 0, "count", value=0), "count of 'slow' is 0"),
        (drop_links, "links.matrix has no link between 'a' and 'b'"),
        (set_in("links", "matrix", 0, "servers", value=["a", "c"]), "link of server 'c', which is"),
        (set_in("links", "matrix", 0, "servers", value=["b", "b"]), "several links of ['b']"),
        (set_in("links", "matrix", 0, "latency_ms", value=-1), "latency_ms is -1.0"),
        (set_in("links", "inside_server", "bandwidth_bytes_per_s", value=0), "expected a finite"),
        (set_in("links", "inside_server", "latency_ms", value=-1), "latency_ms is -1.0"),
        (set_in("device_types", "slow", "memory_bytes", value=0), "memory_bytes is 0"),
        (set_in("device_types", "slow", "memory", value=1), "unknown field `memory`"),
    ],
)
def test_a_cluster_that_does_not_fit_is_refused(
    spoil: Callable[[dict[str, Any]], None], problem: str, tmp_path: Path
) -> None:
    content = msgspec.json.decode(GOLDEN.read_bytes())
    spoil(content)
    path = tmp_path / "cluster.json"
    path.write_bytes(msgspec.json.encode(content))
    with pytest.raises(InputError) as caught:
        Cluster.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


def test_ranks_go_server_by_server_and_group_by_group() -> None:
    slots = Cluster.load(GOLDEN).slots
    assert [(s.rank, s.server, s.device_type) for s in slots] == [
        (0, "a", "fast"),
        (1, "a", "slow"),
        (2, "a", "slow"),
        (3, "b", "slow"),
    ]


def test_links_are_chosen_by_pair_of_servers_else_by_level() -> None:
    cluster = Cluster.load(GOLDEN)
    measured, inside_b = (pair.link for pair in cluster.links.matrix)
    assert cluster.link_between("a", "a") == cluster.links.inside_server
    assert cluster.link_between("b", "b") == inside_b
    assert cluster.link_between("a", "b") == cluster.link_between("b", "a") == measured
    by_level = cluster.replace(links=cluster.links.replace(matrix=()))
    assert by_level.link_between("a", "b") == cluster.links.between_servers
    assert cluster.replace(links=cluster.links.replace(between_servers=None)).slots == cluster.slots


def test_a_message_takes_its_latency_and_its_bytes() -> None:
    link = Link(bandwidth_bytes_per_s=2e9, latency_ms=0.5)
    assert link.transfer_ms(0) == 0.5
    assert link.transfer_ms(4e6) == pytest.approx(0.5 + 2.0)
