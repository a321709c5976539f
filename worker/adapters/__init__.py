"""One outside system per package. Moves bytes, names failures, decides nothing."""
