"""From files to batches: sources list cases, the cache preprocesses each once, the loader reads what is needed."""
