"""Small input files of other planners, made for the tests, and where the public ones are."""

import json
from pathlib import Path
from typing import Any

import pytest

PUBLIC = Path(__file__).resolve().parents[4] / "shared" / "data"


def public(name: str) -> Path:
    """Return a public file; skip the test where the folder is missing."""
    path = PUBLIC / name
    if not path.is_file():
        pytest.skip(f"public data is not there: {path}")
    return path


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def dnn_node(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "supportedOnFpga": 1,
        "cpuLatency": 10.0,
        "fpgaLatency": 1.0,
        "isBackwardNode": 0,
        "size": 1.0,
    } | changes


def dnn_file(**changes: Any) -> dict[str, Any]:
    """Return a chain of four nodes for two accelerators."""
    return {
        "maxSizePerFPGA": 100.0,
        "maxFPGAs": 2,
        "maxCPUs": 0,
        "nodes": [dnn_node(number) for number in (11, 12, 13, 14)],
        "edges": [
            {"sourceId": source, "destId": source + 1, "cost": 0.25} for source in (11, 12, 13)
        ],
    } | changes


def piper_option(before: list[int], after: list[int], **changes: Any) -> dict[str, Any]:
    return {
        "id": "vanilla",
        "timePerSample": 1.0,
        "parameterSize": 4.0,
        "memoryUsageA": 3.0,
        "memoryUsageB": 2.0,
        "syncTimeFw": {str(node): 0.0 for node in before},
        "syncTimeBw": {str(node): 0.0 for node in after},
    } | changes


def piper_file(**changes: Any) -> dict[str, Any]:
    """Return a chain of three nodes, each with a plain and a recomputing option."""
    around: dict[int, tuple[list[int], list[int]]] = {0: ([], [1]), 1: ([0], [2]), 2: ([1], [])}
    return {
        "maxMemoryPerDevice": 100.0,
        "maxDevices": 2,
        "mbsInBatch": 4,
        "bandwidth": 8.0,
        "nodes": [
            {
                "id": node,
                "name": f"layer{node}",
                "TMPCs": {
                    "1": [
                        piper_option(*ends),
                        piper_option(
                            *ends, id="activation recomp", timePerSample=1.5, memoryUsageA=1.0
                        ),
                    ]
                },
            }
            for node, ends in around.items()
        ],
        "edges": [
            {"sourceId": 0, "destId": 1, "communicationCost": 2.0},
            {"sourceId": 1, "destId": 2, "communicationCost": 2.0},
        ],
    } | changes
