"""Runs read back from their folders: options, weights and play."""
