"""Replay: rings of past transitions, on the host and on the device."""
