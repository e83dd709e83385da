"""What a study adds to an algorithm: sharing, weighting, objectives, statistics, answers."""
