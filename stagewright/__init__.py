"""Stagewright: train one PyTorch model on a mixture of GPUs.

This package holds the nouns that the four tools exchange (document, graph, cluster, plan, schedule);
the tools are its sub-packages profiler, optimizer, runtime and models, which never import one another.
"""
