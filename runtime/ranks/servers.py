"""Which ranks of a plan run on which server."""

from stagewright.plan import Plan


def ranks_by_server(plan: Plan) -> dict[str, list[int]]:
    """Return the plan's ranks on each server, servers and ranks in order of ranks."""
    servers = {replica.rank: replica.server for stage in plan.stages for replica in stage.replicas}
    ranks: dict[str, list[int]] = {}
    for rank in sorted(servers):
        ranks.setdefault(servers[rank], []).append(rank)
    return ranks
