"""The schema of every config section, one module per section, so that a stage depends on its own sections alone."""
