"""The cost model: equations, sums over runs of layers, stage costs, memory, and the one evaluator."""
