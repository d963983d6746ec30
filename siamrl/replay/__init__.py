"""What is learned from: rings of transitions, rounds, and data sets."""
