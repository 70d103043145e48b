"""Run an experiment, or a sweep of experiments.

    python -m pipeline                                     # the embedded model and words
    python -m pipeline experiment=dumas_e1 model=llama2_7b
    python -m pipeline -m task.target_language=it,es lens=logit_lens

`python -m pipeline --help` lists the groups. Exit status: 0, 1 for a run that failed, 2 for a config that cannot be run
(nothing was started), 130 after an interrupt.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from pipeline import launch
from pipeline.validate.composing import CONFIG_FOLDER, explain, use_overlay

COMPLETION = Path(__file__).with_name("completion.bash")


def main() -> int:
    """Hand the command line to Hydra; returns the exit status."""
    if {"-sc", "--shell-completion"} & set(sys.argv) and "install=bash" in sys.argv:
        print(COMPLETION.read_text(encoding="utf-8"))  # Hydra's own script does not know `python -m`
        return 0
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors come here as exceptions, not as text and an exit
    try:
        use_overlay()
        with launch.masked_logs():  # Hydra tells each job's overrides
            hydra.main(config_path=str(CONFIG_FOLDER), config_name="config", version_base="1.3")(launch.job)()
    except KeyboardInterrupt as interrupt:
        launch.complain("interrupted. What is finished is kept: the same command goes on from there.")
        launch.stop("KILLED")
        return 128 + int(getattr(interrupt, "number", signal.SIGINT))  # as a shell says it
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if before == "1":
            raise
        overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        launch.complain(explain(error, overrides))
        launch.stop("FAILED")
        return launch.REJECTED
    except Exception as error:
        if launch.begun is None or before == "1":
            raise
        first = (str(error) or type(error).__name__).splitlines()[0]
        launch.complain(f"the launcher stopped ({type(error).__name__}: {first}). What is finished is kept.")
        sweep, launch.begun = launch.begun, None
        return sweep.finish() or launch.FAILED
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
    return 0


if __name__ == "__main__":
    sys.exit(main())
