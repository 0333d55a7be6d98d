"""HTML pages and figures: the look that all reports share."""
