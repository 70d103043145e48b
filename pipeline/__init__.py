"""The workflow: Hydra composes a config, DVC caches the stages, zarr keeps the tensors, MLflow tracks the run."""
