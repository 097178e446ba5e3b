"""What is asked of rows: the law of a study, N* and D*, choices, comparisons, the next runs."""
