"""What a study's YAML says, and a run's own config."""
