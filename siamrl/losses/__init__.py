"""Losses: one equation a function, written for a single transition."""
