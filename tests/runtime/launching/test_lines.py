"""Lines: one torchrun per server, in the plan's order, with its number of ranks and its GPUs."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stagewright.document import InputError
from stagewright.runtime.launching.command import main
from stagewright.runtime.launching.lines import Launch, lines_of


def launch_of(servers: Any, **changes: Any) -> Launch:
    options: dict[str, Any] = {
        "cluster": servers.cluster,
        "directory": servers.package.directory,
        "train_options": ("--task", "task.py"),
        "hosts": {"big": "10.0.0.1"},
        "python": "python3",
        "port": 29400,
    }
    return Launch(**options | changes)


def test_every_server_gets_its_own_number_of_ranks_and_the_first_holds_the_rendezvous(
    servers: Any,
) -> None:
    big, small = lines_of(launch_of(servers), servers.package.plan)
    assert (big.host, big.ranks, small.host, small.ranks) == ("10.0.0.1", (0, 1), "small", (2,))
    for line, count, is_host in ((big, "2", "1"), (small, "1", "0")):
        words = list(line.command)
        assert words[words.index("--nproc-per-node") + 1] == count
        assert words[words.index("--rdzv-endpoint") + 1] == "10.0.0.1:29400"
        assert words[words.index("--rdzv-conf") + 1] == f"is_host={is_host}"
        assert words[words.index("--server") + 1] == line.server
        assert "--gpu" not in words
        assert line.text.startswith("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 python3 -m ")


def test_gpus_are_named_as_their_profile_was_measured(servers: Any) -> None:
    graph = servers.package.directory.parent / "graph.json"
    graph.write_text(graph.read_text().replace("not measured, 1 thread", "NVIDIA T4"))
    big, small = lines_of(launch_of(servers), servers.package.plan)
    assert [word for word in big.command if word == "NVIDIA T4"] == ["NVIDIA T4"] * 2
    assert small.command.count("--gpu") == 1


def test_a_plan_for_another_cluster_is_refused(servers: Any) -> None:
    text = servers.cluster.read_text()
    servers.cluster.write_text(text.replace("count = 2", "count = 1"))
    with pytest.raises(InputError, match=r"uses 2 of 'cpu' on server 'big', but .* has 1 there"):
        lines_of(launch_of(servers), servers.package.plan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "nowhere=1.2.3.4"), "--host is nowhere=1.2.3.4, expected SERVER=ADDRESS"),
        (("--port", "0"), "--port is 0, expected 1 to 65000"),
        (("--max-restarts", "1"), "--max-restarts needs --checkpoint FOLDER --resume"),
        (("--elastic",), "--elastic needs --checkpoint FOLDER"),
        (("--work", "folder"), "--work is for --elastic; leave it out, or give --elastic"),
        (("--elastic", "--probe-every", "-1"), "--probe-every is -1.0, expected seconds above 0"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    servers: Any, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError) as error:
        main([str(servers.cluster), str(servers.package.directory), *options])
    assert message in str(error.value)


def test_the_batch_script_runs_every_line_on_its_server(
    servers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(servers.cluster), str(servers.package.directory)]
    options = ["--python", "echo", "--", "--task", "my task.py"]
    main([*arguments, "--json", *options])
    lines = json.loads(capsys.readouterr().out)["lines"]
    main([*arguments, "--sbatch", *options])
    (tmp_path / "job.sh").write_text(capsys.readouterr().out)
    (tmp_path / "srun").write_text('#!/bin/sh\nshift 2\nhost=$1; shift\necho "$host: $*"\n')
    (tmp_path / "srun").chmod(0o755)
    done = subprocess.run(
        ["bash", str(tmp_path / "job.sh")],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = [f"--nodelist={line['host']}: {' '.join(line['command'])}" for line in lines]
    assert sorted(done.stdout.splitlines()) == sorted(expected)
