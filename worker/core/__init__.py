"""The rules: values in, values out. No await, no clock, no randomness, no outside system."""
