"""What is learned, and how a node takes its local steps."""
