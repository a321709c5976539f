"""Dead letters: what may be done to them, and what may happen meanwhile."""
