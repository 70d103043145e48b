"""Read and write the artifacts that several stages share."""
