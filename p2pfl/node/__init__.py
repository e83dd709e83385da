"""One node, for every driver."""
