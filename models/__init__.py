"""What is trained: sizes, networks, parametrisation, cost. Imports nothing of ours."""
