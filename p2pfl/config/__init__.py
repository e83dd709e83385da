"""Files that a person writes, as frozen dataclasses."""
