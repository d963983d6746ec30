"""Suites of environments: options in, environments and networks out."""
