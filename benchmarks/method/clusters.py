"""Cluster files whose devices are all on this machine."""

from collections.abc import Mapping

LOOPBACK = """\
[links.inside_server]
bandwidth_bytes_per_s = 1.0e9
latency_ms = 0.3
"""
"""Assumed, where a benchmark does not measure its links."""


def cluster_text(
    servers: Mapping[str, Mapping[str, int]],
    links: str = LOOPBACK,
    memory_bytes: int = 8_000_000_000,
    profiles: str = ".",
) -> str:
    """Return a cluster file.

    Args:
        servers: the number of devices by type, by server; the profile of type x is x.json.
        links: the file's links, as TOML.
        memory_bytes: of each device.
        profiles: the folder of the profiles, from the file.
    """
    types = dict.fromkeys(name for devices in servers.values() for name in devices)
    parts = ['format = "stagewright.cluster"\nversion = 1\n']
    parts += [
        f'[device_types.{name}]\nmemory_bytes = {memory_bytes}\nprofile = "{profiles}/{name}.json"\n'
        for name in types
    ]
    for server, devices in servers.items():
        counted = ", ".join(f'{{ type = "{name}", count = {n} }}' for name, n in devices.items())
        parts.append(f'[[servers]]\nname = "{server}"\ndevices = [{counted}]\n')
    return "\n".join([*parts, links])
