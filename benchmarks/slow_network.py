"""Step times over a slow network, replayed, against the simulator's.

Run as root with: .venv/bin/python benchmarks/slow_network.py
Two network namespaces on this machine stand for two servers, joined by a link that the kernel limits to 200
Mbit/s (tc, token bucket) in each direction. `stagewright links` measures it between ranks in them; its
figures go into the cluster file; three plans are predicted with it and replayed between the same namespaces:
real messages, computing slept, as long as the plan says. The namespaces are removed at the end. Where they
cannot be made it says why and ends.
"""

import argparse
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from method.clusters import LOOPBACK, cluster_text
from method.commands import ROOT, one_thread, stagewright

from stagewright.cluster import Cluster
from stagewright.plan import Plan

TASK = "models/digits_cnn.py"
RATE, BURST, QUEUE = "200mbit", "64kb", "400ms"
"""A larger burst would let the first part of every message pass at the speed of memory."""
SERVERS = ("swbench0", "swbench1")
ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 29731
SLOWDOWN = 3.0
PLANS = (
    # name, options of stagewright optimize
    ("a wide border, 1f1b", ("--cuts", "features.6", "--types", "cpu,slow")),
    (
        "a wide border, gpipe",
        ("--cuts", "features.6", "--types", "cpu,slow", "--schedule", "gpipe"),
    ),
    ("a wide border, slow first", ("--cuts", "features.3", "--types", "slow,cpu")),
)


class NoNetworkError(Exception):
    """The namespaces cannot be made; the message says why."""


@contextlib.contextmanager
def two_networks(rate: str = RATE) -> Iterator[None]:
    """Make two namespaces joined by a limited link, and remove them.

    Raises:
        NoNetworkError: it is not permitted, or a program is missing.
    """
    missing = [name for name in ("ip", "tc", "unshare") if shutil.which(name) is None]
    if missing:
        raise NoNetworkError(f"{missing[0]} is not installed")
    made: list[str] = []
    try:
        for name in SERVERS:
            _network("ip", "netns", "add", name)
            made.append(name)
        _network(
            "ip",
            "link",
            "add",
            "sw0",
            "netns",
            SERVERS[0],
            "type",
            "veth",
            "peer",
            "sw1",
            "netns",
            SERVERS[1],
        )
        for name, device, address in zip(SERVERS, ("sw0", "sw1"), ADDRESSES, strict=True):
            inside = ("ip", "netns", "exec", name)
            _network(*inside, "ip", "addr", "add", f"{address}/24", "dev", device)
            _network(*inside, "ip", "link", "set", device, "up")
            _network(*inside, "ip", "link", "set", "lo", "up")
            limit = ("tbf", "rate", rate, "burst", BURST, "latency", QUEUE)
            _network(*inside, "tc", "qdisc", "add", "dev", device, "root", *limit)
        yield
    finally:
        for name in made:
            subprocess.run(("ip", "netns", "delete", name), check=False)


def _network(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoNetworkError(f"{' '.join(command)}: {done.stderr.strip()}")


def between_servers(command: Sequence[str]) -> str:
    """Run a module, a rank in each namespace under a host name of its own; return what rank 0 prints."""
    ranks = []
    for rank, (name, device) in enumerate(zip(SERVERS, ("sw0", "sw1"), strict=True)):
        environment = one_thread() | {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(SERVERS)),
            "LOCAL_RANK": "0",
            "MASTER_ADDR": ADDRESSES[0],
            "MASTER_PORT": str(PORT),
            "GLOO_SOCKET_IFNAME": device,
        }
        named = ("unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "sh")
        inside = ("ip", "netns", "exec", name, *named, sys.executable, "-m", *command)
        ranks.append(
            subprocess.Popen(
                inside,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = []
    try:
        for process in ranks:
            out, err = process.communicate(timeout=300)
            if process.returncode:
                sys.exit(f"{' '.join(command)}\n{err}")
            outputs.append(out)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return outputs[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", default="10")
    args = parser.parse_args()
    try:
        with two_networks(), tempfile.TemporaryDirectory() as name:
            measure(Path(name), args.steps)
    except NoNetworkError as error:
        print(f"skipped: no network namespaces on {socket.gethostname()}: {error}")


def measure(folder: Path, steps: str) -> None:
    """Print the link and the table."""
    profile = ("profile", TASK, "-b", "16", "--repeats", "10")
    stagewright(*profile, "--device-type", "cpu", "-o", str(folder / "cpu.json"))
    emulated = ("--device-type", "slow", "--emulate-slowdown", str(SLOWDOWN))
    stagewright(*profile, *emulated, "-o", str(folder / "slow.json"))
    links = folder / "links.toml"
    between_servers(("stagewright.profiler.links_command", "-o", str(links)))
    print(links.read_text())
    servers = {server: {name: 1} for server, name in zip(SERVERS, ("cpu", "slow"), strict=True)}
    (folder / "cluster.toml").write_text(cluster_text(servers, LOOPBACK + links.read_text()))
    print(f"type slow is emulated: this CPU, {SLOWDOWN:g} times slower")
    print(
        "| plan | busiest rank ms | messages each way ms | simulated ms/step | replayed ms/step | ratio |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    for label, options in PLANS:
        path = folder / "plan.json"
        batch = ("--batch-size", "128", "--microbatch-size", "16")
        stagewright("optimize", str(folder / "cluster.toml"), "-o", str(path), *batch, *options)
        plan = Plan.load(path)
        replay = (
            "stagewright.runtime.checking.replay_command",
            str(path),
            "--steps",
            steps,
            "--json",
        )
        found = json.loads(between_servers(replay).splitlines()[-1])
        simulated, replayed = found["simulated_step_ms"], found["measured_step_ms"]
        computing, messages = parts_ms(plan, Cluster.load(folder / "cluster.toml"))
        print(
            f"| {label} | {computing:.1f} | {messages:.1f} | {simulated:.1f} | {replayed:.1f} "
            f"| {simulated / replayed:.3f} |",
            flush=True,
        )
    print(
        "simulated: predicted, with the measured link; replayed: measured, computing slept; ratio: theirs"
    )


def parts_ms(plan: Plan, cluster: Cluster) -> tuple[float, float]:
    """Return how long the busiest rank computes in a step, and all messages of one direction travel."""
    link = cluster.link_between(*SERVERS)
    bytes_each = sum(border.forward_bytes(plan.microbatch_size) for border in plan.borders)
    message_ms = link.latency_ms + bytes_each / link.bandwidth_bytes_per_s * 1e3
    replicas = [replica.predicted for stage in plan.stages for replica in stage.replicas]
    busiest_ms = max(replica.forward_ms + replica.backward_ms for replica in replicas)
    return busiest_ms * plan.num_microbatches, message_ms * plan.num_microbatches


if __name__ == "__main__":
    main()
