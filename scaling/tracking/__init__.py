"""MLflow's copy of a study's record."""
