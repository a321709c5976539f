"""Dispatches Nomad parameterized jobs from a Redis stream and reports how each one truly ended."""

__version__ = "0.1.0"
