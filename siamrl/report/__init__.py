"""Folders, checkpoints, metrics, statistics and figures of runs."""

from siamrl.report.loading import load

__all__ = ['load']
