"""Run experiments: Hydra composes a config, DVC caches the stages, zarr keeps the tensors, MLflow tracks the run."""

import os

from pipeline.process import provide_home
from pipeline.project import state_folder

# Here, since every entry passes it before it loads a library that looks for a home.
provide_home(os.environ, state_folder() / "home")
