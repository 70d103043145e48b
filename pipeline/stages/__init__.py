"""Compute the artifacts of a run, stage by stage: tokenize, collect, tune, lens, evaluate, report.

Each reads its config section and its input artifacts in the current folder and leaves its output artifact there:
`python -m pipeline.stages.NAME` in a run folder.
"""
