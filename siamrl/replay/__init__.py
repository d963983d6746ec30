"""Replay: rings of past transitions, in host memory."""
