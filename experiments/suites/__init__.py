"""Suites of environments, which make environments and networks of options."""
