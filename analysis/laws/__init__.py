"""Laws of given points: forms, fits, intervals, what was published. Numbers in, laws out."""
