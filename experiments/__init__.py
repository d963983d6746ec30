"""Launchers, each run as `python -m experiments.NAME`."""

from experiments import startup

startup.begin()
