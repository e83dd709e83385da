"""Three drivers, each the only place of its effect; they never import one another."""
