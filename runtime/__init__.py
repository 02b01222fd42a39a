"""Runtime: one rank of a plan, executed over torch.distributed."""
