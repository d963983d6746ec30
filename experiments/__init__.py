"""Launchers, each run as `python -m experiments.NAME`."""

from siamrl.report import streams

# Before any other module opens a file.
streams.hold_descriptors()

from experiments.config import startup  # noqa: E402

startup.begin()
