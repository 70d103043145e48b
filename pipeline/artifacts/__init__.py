"""What several stages read: the artifacts that one stage writes and others open."""
