"""Running a study: media to tokens to runs to rows."""
