"""The workflow: Hydra composes a config, DVC caches the stages, zarr keeps the tensors, MLflow tracks the run."""

import os
from pathlib import Path

from pipeline.home import provide_home

# Here, since every entry passes it before it loads a library that looks for a home.
provide_home(os.environ, Path(__file__).resolve().parent.parent / ".interpipe" / "home")
