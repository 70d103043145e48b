"""Define the schema of every config section, one module each, so that a stage depends on its own sections alone."""
