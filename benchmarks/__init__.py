"""Measures the worker against what it could be replaced with; `python -m benchmarks --help`."""
