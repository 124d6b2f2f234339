"""The atlas: what papers claim about depth, asked of finished runs, and a page for each model."""
