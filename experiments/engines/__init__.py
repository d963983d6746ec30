"""Engines: what trains runs in their folders, whatever they learn."""
