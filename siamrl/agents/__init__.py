"""Agents: records of pure functions, one file for each family."""
