"""A cross-validation from its cases to its pooled results and its final model."""
