"""Tools to run and test the worker on one machine: an embedded Redis and a Nomad simulator."""
