"""Agents: records of pure functions, one file a family."""
