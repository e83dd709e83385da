"""From an experiment to what it means."""
