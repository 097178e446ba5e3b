"""The page of a study: one HTML file without network."""
