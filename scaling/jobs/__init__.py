"""Running a study's jobs: here, or on a Slurm cluster."""
