"""SparsePipe's server file: what is written reads back the same, and a malformed line is named."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewright.cluster import Link
from stagewright.document import InputError
from stagewright.server_file import (
    ServerFile,
    TextDevices,
    TextServer,
    from_cluster,
    parse_servers,
    to_cluster,
)

LINK = Link(bandwidth_bytes_per_s=1e9, latency_ms=0.1)
SLOW_LINK = Link(bandwidth_bytes_per_s=1e8, latency_ms=1.0)
TWO_SERVERS = """\
# our two machines

Server0
    TitanV 1 hete_files/graph_tv.txt

\tTitanXP 3 hete_files/graph_txp.txt
ServerOfAnn
  # the old one
  TitanV 2 hete_files/graph_tv.txt
"""

words = st.text(string.ascii_letters + string.digits + "_-./é#", min_size=1, max_size=6)


@st.composite
def server_files(draw: st.DrawFn) -> ServerFile:
    types = words.filter(lambda word: not word.startswith("#"))
    names = draw(st.lists(words, min_size=1, max_size=4, unique=True))
    servers = []
    for name in names:
        devices = tuple(
            TextDevices(
                device_type=device_type,
                count=draw(st.integers(1, 1000)),
                profile=draw(words),
            )
            for device_type in draw(st.lists(types, min_size=1, max_size=4, unique=True))
        )
        servers.append(TextServer(name=f"Server{name}", devices=devices))
    return ServerFile(servers=tuple(servers))


@given(server_files())
def test_written_servers_read_back_the_same(servers: ServerFile) -> None:
    assert parse_servers(str(servers)) == servers


def test_several_servers_comments_and_blank_lines_are_read() -> None:
    servers = parse_servers(TWO_SERVERS).servers
    assert [server.name for server in servers] == ["Server0", "ServerOfAnn"]
    assert [(g.device_type, g.count) for s in servers for g in s.devices] == [
        ("TitanV", 1),
        ("TitanXP", 3),
        ("TitanV", 2),
    ]


def test_canonical_text_is_sparsepipes() -> None:
    text = "Server0\n    TitanV 1 hete_files/tv.txt\n    TitanXP 3 hete_files/txp.txt\n"
    assert str(parse_servers(text)) == text
    assert parse_servers(text.replace("    ", "")) == parse_servers(text)


@pytest.mark.parametrize(
    ("line", "named", "problem"),
    [
        ("Server1 extra", 3, "expected the server's name alone"),
        ("Server0", 3, "Server0 is there twice"),
        ("    TitanV", 3, "(1 words), expected three"),
        ("    TitanXP 1 path with spaces", 3, "(5 words), expected three"),
        ("    TitanXP 0 p.txt", 3, "count of TitanXP is '0'"),
        ("    TitanXP -1 p.txt", 3, "count of TitanXP is '-1'"),
        ("    TitanXP two p.txt", 3, "count of TitanXP is 'two'"),
        ("    TitanV 2 p.txt", 3, "Server0 has TitanV twice"),
        ("Machine1", 3, "(1 words), expected three"),
        ("Server1", 3, "Server1 has no devices"),
    ],
)
def test_a_malformed_line_is_named_with_what_is_wrong(line: str, named: int, problem: str) -> None:
    text = f"Server0\n    TitanV 1 p.txt\n{line}\n"
    with pytest.raises(InputError) as caught:
        parse_servers(text, "servers.txt")
    assert str(caught.value).startswith(f"servers.txt:{named}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_devices_before_a_server_and_empty_files_are_refused() -> None:
    with pytest.raises(InputError, match=r"servers.txt:1: .*expected a server first"):
        parse_servers("TitanV 1 p.txt\n", "servers.txt")
    with pytest.raises(InputError, match="has no server"):
        parse_servers("# nothing\n")


def test_a_cluster_has_the_ranks_of_the_file_in_its_order_and_goes_back() -> None:
    servers = parse_servers(TWO_SERVERS)
    cluster = to_cluster(
        servers,
        memory_bytes={"TitanV": 12 << 30, "TitanXP": 11 << 30},
        inside_server=LINK,
        between_servers=SLOW_LINK,
    )
    ranks = [(slot.rank, slot.server, slot.device_type) for slot in cluster.slots]
    assert ranks == [
        (0, "Server0", "TitanV"),
        (1, "Server0", "TitanXP"),
        (2, "Server0", "TitanXP"),
        (3, "Server0", "TitanXP"),
        (4, "ServerOfAnn", "TitanV"),
        (5, "ServerOfAnn", "TitanV"),
    ]
    assert cluster.device_types["TitanXP"].profile == "hete_files/graph_txp.txt"
    assert cluster.link_between("Server0", "ServerOfAnn") == SLOW_LINK
    assert from_cluster(cluster) == servers


def test_a_cluster_needs_every_memory_one_profile_a_type_and_a_link_between_servers() -> None:
    servers = parse_servers(TWO_SERVERS)
    memory = {"TitanV": 1, "TitanXP": 1}
    with pytest.raises(InputError, match="memory of TitanXP is not given"):
        to_cluster(servers, memory_bytes={"TitanV": 1}, inside_server=LINK)
    with pytest.raises(InputError, match=r"links\.between_servers is missing"):
        to_cluster(servers, memory_bytes=memory, inside_server=LINK)
    twice = parse_servers("Server0\n T 1 a.txt\nServer1\n T 1 b.txt\n")
    with pytest.raises(InputError, match=r"Server1 names b\.txt as the profile of T"):
        to_cluster(twice, memory_bytes={"T": 1}, inside_server=LINK, between_servers=LINK)


def test_servers_are_saved_and_loaded(tmp_path: Path) -> None:
    servers = parse_servers(TWO_SERVERS)
    servers.save(tmp_path / "servers.txt")
    assert ServerFile.load(tmp_path / "servers.txt") == servers
