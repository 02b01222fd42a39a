"""Reference models: each file is a task (build, example_input, loss, dataset, metric)."""
