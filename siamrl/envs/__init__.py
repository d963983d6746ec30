"""Adapters that give each kind of environment the interfaces of `siamrl`."""
