"""Places: the plan's ranks by server, GPUs by name, and a store that is new for every restart."""

from typing import Any

import pytest
import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from stagewright.document import InputError
from stagewright.runtime.ranks.places import device_named, rank_on_server, store_of_torchrun
from stagewright.runtime.ranks.servers import ranks_by_server

MakePackage = Any


@pytest.fixture
def plan(make_package: MakePackage) -> Any:
    return make_package("mlp", [2, 1], 2, "1f1b", servers=("a", "b", "a")).plan


def test_a_process_takes_the_plans_places_on_its_server(plan: Any) -> None:
    assert ranks_by_server(plan) == {"a": [0, 2], "b": [1]}
    assert [rank_on_server(plan, "a", local, {"LOCAL_WORLD_SIZE": "2"}) for local in range(2)] == [
        0,
        2,
    ]
    assert rank_on_server(plan, "b", 0, {"LOCAL_WORLD_SIZE": "1"}) == 1


def test_a_server_without_places_or_with_other_processes_is_refused(plan: Any) -> None:
    with pytest.raises(
        InputError, match=r"--server is 'c', but the plan uses the servers 'a', 'b'"
    ):
        rank_on_server(plan, "c", 0, {"LOCAL_WORLD_SIZE": "1"})
    with pytest.raises(
        InputError, match=r"3 processes .* 'a', but the plan has 2 .*--nproc-per-node 2"
    ):
        rank_on_server(plan, "a", 0, {"LOCAL_WORLD_SIZE": "3"})


def test_gpus_are_bound_by_name_in_whatever_order_they_are_listed() -> None:
    wanted = ["A100", "T4", "T4"]
    present = ["T4", "A100", "T4"]
    bound = [device_named(wanted, local, present) for local in range(3)]
    assert bound == [torch.device("cuda", index) for index in (1, 0, 2)]


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"needs GPU number 2 of the name 'T4', but CUDA lists"):
        device_named(["T4", "T4"], 1, ["T4", "A100"])
    with pytest.raises(InputError, match=r"--gpu was given 1 times, but process 1"):
        device_named(["T4"], 1, ["T4", "T4"])


def environment_of(restart: int, port: int) -> dict[str, str]:
    """Return what torchrun sets where it shares its store with the ranks."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "1",
        "RANK": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "2",
        "TORCHELASTIC_RESTART_COUNT": str(restart),
        "GROUP_WORLD_SIZE": "1",
    }


def test_after_a_restart_nothing_of_the_run_before_is_in_a_shared_store() -> None:
    server = TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    first, second = (store_of_torchrun(environment_of(n, server.port), 0, 5) for n in range(2))
    first.set("address", "of a dead rank")
    assert first.check(["address"])
    assert not second.check(["address"])
    with pytest.raises(InputError, match=r"two processes claim rank 0 of the plan"):
        store_of_torchrun(environment_of(1, server.port), 0, 5)


def test_restarts_on_several_servers_with_a_shared_store_are_refused() -> None:
    with pytest.raises(InputError, match=r"set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        store_of_torchrun(environment_of(0, 1) | {"GROUP_WORLD_SIZE": "2"}, 0, 5)
    with pytest.raises(InputError, match=r"MASTER_ADDR.*start with torchrun"):
        store_of_torchrun({"RANK": "0", "WORLD_SIZE": "1"}, 0, 5)
