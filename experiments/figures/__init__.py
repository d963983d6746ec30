"""Figures of runs: what is read, what is compared, and what is drawn."""
