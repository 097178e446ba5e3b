"""Reading a study: rows to laws, comparisons and figures. Never imports torch."""
