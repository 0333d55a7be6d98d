"""From files to batches: sources list cases, the cache preprocesses each once, patches and the loader read what is needed."""
