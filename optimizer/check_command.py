"""Check the lower bound of a plan: recompute what its certificates prove, from the files it was made from.

example: stagewright check plan.json
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagewright.plan import Plan

from .check import check_plan
from .load import load_inputs_of_plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        InputError: a file is wrong or has changed, or a certificate proves less than it claims.
    """
    parser = argparse.ArgumentParser(
        prog="stagewright check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plan", type=Path, help="plan (JSON)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    plan = Plan.load(args.plan)
    bounds_ms = check_plan(plan, load_inputs_of_plan(plan, args.plan), args.plan)
    report = report_of(plan, args.plan, bounds_ms)
    print(json.dumps(report) if args.json else text_of(report))
    return 0


def report_of(plan: Plan, path: Path, bounds_ms: Sequence[float]) -> dict[str, Any]:
    """Return the object that --json prints; docs/formats.md lists its keys."""
    several = plan.proof.mixed_types is None and any(c.mixes_types for c in plan.proof.certificates)
    pairs = list(zip(plan.proof.certificates, bounds_ms, strict=True))
    own_ms = [bound_ms for certificate, bound_ms in pairs if certificate.mixes_types == several]
    return {
        "plan": str(path),
        "objective": plan.proof.objective,
        "objective_ms": plan.proof.value,
        "bound_ms": plan.proof.lower_bound,
        "certificates": [
            {
                "microbatch_size": certificate.microbatch_size,
                "mixes_types": certificate.mixes_types,
                "proven_ms": bound_ms,
            }
            for certificate, bound_ms in pairs
        ],
        "certified_ms": min(own_ms) if own_ms else None,
        "space": plan.proof.space,
    }


def text_of(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [
        f"{report['objective']} {report['objective_ms']:.3f} ms predicted; lower bound "
        f"{report['bound_ms']:.3f} ms by the solver"
    ]
    for entry in report["certificates"]:
        lines.append(
            f"micro-batch {entry['microbatch_size']}: recomputed, no plan is below "
            f"{entry['proven_ms']:.3f} ms"
            + (", with stages of one or several device types" if entry["mixes_types"] else "")
        )
    certified_ms = report["certified_ms"]
    if certified_ms is None:
        lines.append(
            "the plan has no certificate: its solver proved the bound by exhausting the search, which "
            "only running it again can confirm"
        )
    elif certified_ms < report["bound_ms"] * (1 - 1e-8):
        rest = 1 - certified_ms / report["bound_ms"]
        lines.append(
            f"the certificate covers the bound up to {certified_ms:.3f} ms; the last {rest:.3%} were closed "
            "by exhausting the search, which only running the solver again can confirm"
        )
    lines.append(f"searched: {report['space']}")
    return "\n".join(lines)
