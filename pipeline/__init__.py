"""Run experiments: Hydra composes a config, DVC caches the stages, zarr keeps the tensors, MLflow tracks the run."""

import os
import sys

from pipeline.process import provide_home, stop_unless_installed
from pipeline.project import state_folder

if sys.argv[:1] == ["-m"]:  # `python -m pipeline...`, while Python looks for the module
    stop_unless_installed()
# Here, since every entry passes it before it loads a library that looks for a home.
provide_home(os.environ, state_folder() / "home")
