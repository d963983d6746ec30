"""Parts of experiments.benchmark, by what they time."""
