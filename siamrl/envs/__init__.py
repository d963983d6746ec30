"""Adapters: one interface, `siamrl.types.Environments`, to each kind of
environment."""
