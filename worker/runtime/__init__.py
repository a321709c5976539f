"""The process: wiring, task tree, signals, metrics, logs, health."""
