"""One run: its steps, its ranks, its device."""
