"""A study from its media to its report, and what it says on the way."""
