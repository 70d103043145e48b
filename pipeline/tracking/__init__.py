"""Track runs and sweeps with MLflow, which no other package knows.

A run is logged from the files that it left, so a cached stage logs exactly what a computed one does, and a run that
could not be sent can be sent later.
"""
