"""Replanning: a part of a cluster has what its servers need, and its file finds the profiles."""

from pathlib import Path

import pytest

from stagewright.cluster import Cluster
from stagewright.document import InputError
from stagewright.plan import Plan
from stagewright.runtime.launching.replanning import Replanner, part_of

EXAMPLE = Path(__file__).parents[3] / "hete_files" / "two_servers.toml"


def test_a_part_keeps_its_servers_and_the_types_that_they_use() -> None:
    part = part_of(Cluster.load(EXAMPLE), ["node1"])
    assert [server.name for server in part.servers] == ["node1"]
    assert list(part.device_types) == ["slow"]


def test_a_parts_file_finds_its_profiles_from_another_folder(tmp_path: Path) -> None:
    replanner = Replanner("python3", tmp_path / "deep" / "work", EXAMPLE.parent, ())
    path = replanner.cluster_file(part_of(Cluster.load(EXAMPLE), ["node0"]))
    loaded = Cluster.load(path)
    for device_type in loaded.device_types.values():
        assert (path.parent / device_type.profile).is_file()


def test_stage_modules_that_are_there_are_taken_and_a_failing_planner_is_quoted(
    tmp_path: Path,
) -> None:
    cluster = Cluster.load(EXAMPLE)
    plan = Plan.load(Path(__file__).parents[2] / "golden" / "plan.v2.json")
    script = tmp_path / "planner"
    script.write_text("#!/bin/sh\necho 'it does not fit' >&2\nexit 2\n")
    script.chmod(0o755)
    replanner = Replanner(str(script), tmp_path, EXAMPLE.parent, ())
    replanner.remember(cluster, tmp_path / "stages")
    assert replanner.directory_for(cluster, plan) == tmp_path / "stages"
    with pytest.raises(InputError, match=r"planning anew failed: it does not fit"):
        replanner.directory_for(part_of(cluster, ["node1"]), plan)
