"""siamrl: the twin networks of value-based deep reinforcement learning."""
