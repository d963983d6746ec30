"""siamrl: the twin networks of value-based deep reinforcement learning."""

__version__ = '0.1.0'
