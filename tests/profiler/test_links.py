"""stagewright links: real ranks over gloo give figures that a cluster file takes."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from stagewright.cli import run
from stagewright.cluster import Link
from stagewright.document import InputError
from stagewright.profiler.links import Links, PairLink, cluster_text
from stagewright.profiler.links_command import main


def test_two_ranks_measure_a_link_that_a_cluster_file_takes(tmp_path: Path) -> None:
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    output, picture = tmp_path / "links.toml", tmp_path / "links.svg"
    files = ("-o", str(output), "--picture", str(picture))
    effort = ("--seconds", "0.01", "--sizes", "1024", "65536", "1048576")
    done = subprocess.run(
        [*torchrun, "-m", "stagewright.profiler.links_command", *files, *effort, "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["backend"] == "gloo" and content["files"] == [str(output), str(picture)]
    (pair,) = content["pairs"]
    for curve in ("one_way_ms", "both_ways_ms", "all_reduce_ms"):
        assert list(pair[curve]) == ["1024", "65536", "1048576"] and min(pair[curve].values()) > 0
    assert b"<svg" in picture.read_bytes()
    inside = tomllib.loads(output.read_text())["links"]["inside_server"]
    link = msgspec.convert(inside, Link)
    assert link.latency_ms > 0
    assert link.bandwidth_bytes_per_s > 1e6


def test_the_slowest_pair_counts_and_three_servers_get_a_matrix() -> None:
    def pair(first: int, second: int, latency_ms: float, bandwidth: float) -> PairLink:
        return PairLink(
            first=first,
            second=second,
            latency_ms=latency_ms,
            bandwidth_bytes_per_s=bandwidth,
            one_way_ms={"1": 1.0, "2": 2.0},
            both_ways_ms={"1": 1.0, "2": 3.0},
            all_reduce_ms=None,
            worst_error=0.0,
        )

    links = Links(
        servers=("a", "a", "b", "c"),
        backend="gloo",
        pairs=(pair(0, 1, 0.1, 9e9), pair(0, 2, 0.2, 2e9), pair(1, 2, 0.3, 3e9), pair(0, 3, 0.5, 1e9),
               pair(1, 3, 0.4, 1e9), pair(2, 3, 0.6, 5e8)),
        all_reduce_ms={"1": 1.0},
    )  # fmt: skip
    assert {p.both_over_one for p in links.pairs} == {1.5}
    content = tomllib.loads(cluster_text(links))["links"]
    assert content["inside_server"] == {"bandwidth_bytes_per_s": 9e9, "latency_ms": 0.1}
    assert content["between_servers"] == {"bandwidth_bytes_per_s": 5e8, "latency_ms": 0.6}
    found = {tuple(entry["servers"]): entry["latency_ms"] for entry in content["matrix"]}
    assert found == {("a", "a"): 0.1, ("a", "b"): 0.3, ("a", "c"): 0.5, ("b", "c"): 0.6}


def test_one_rank_is_told_to_start_with_torchrun(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert run("stagewright links", main, ()) == 2
    assert "start with torchrun" in capsys.readouterr().err


def test_one_size_gives_no_bandwidth_and_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("stagewright links", main, ("--sizes", "4096")) == 2
    assert "--sizes is [4096], expected two or more" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "99")):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        InputError, match=r"--device is cuda, but this server has .* for its process 99"
    ):
        main(["--device", "cuda"])
