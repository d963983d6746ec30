"""Experience to learn from: replay rings, rounds of steps, and data sets."""
