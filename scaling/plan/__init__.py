"""What a study will train, and what that costs."""
