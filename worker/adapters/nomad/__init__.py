"""Nomad: its HTTP API and its event stream. Bytes in, values and named errors out."""
