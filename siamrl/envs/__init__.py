"""Adapters: one interface, `siamrl.types.Environments`, to each kind of
environment. Each is imported by its own name, so that none needs the others'
dependencies."""
