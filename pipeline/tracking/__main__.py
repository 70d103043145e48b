"""Run `python -m pipeline.tracking`: `sync FOLDER...` sends runs that MLflow lacks, `ui` shows its page."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from interp.errors import InterpError
from pipeline.config.section import load
from pipeline.config.tracking import TrackingConfig
from pipeline.project import project_root
from pipeline.sweep import described, jobs_of, sweep_of
from pipeline.tracking.payload import read_json
from pipeline.tracking.runs import Allowance, close_sweep, prepare, send
from pipeline.tracking.sending import first_line, target_of, tracking_uri

REMEDY = "The same command tries again; with --seconds 600 it waits longer."


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two commands; returns the exit status, 1 when any run could not be sent."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sync = commands.add_parser("sync", help="send runs that MLflow did not get, and close their sweep")
    sync.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    sync.add_argument("--seconds", type=int, help="that a run may take (default: its tracking.timeout)")
    page = commands.add_parser("ui", help="show the runs of the repository's own database on 127.0.0.1")
    page.add_argument("--port", type=int, default=5000)
    parsed = parser.parse_args(arguments)
    if parsed.command == "ui":
        show(parsed.port)
    return min(sum(_sync(folder, parsed.seconds) for folder in parsed.folders), 1)


def _sync(folder: Path, seconds: int | None) -> int:
    """Send a run, or each run of a sweep, and close the sweep's parent run if the sweep is over.

    Arguments:
        folder: of the run or of the sweep.
        seconds: that each question may take; None: what the config allows.

    Returns:
        How many of these were not done.
    """
    failed = 0
    whole = (folder / "sweep.json").is_file() and not (folder / "run.json").is_file()
    trackings: dict[Path, list[TrackingConfig]] = {}
    for place in [job.folder for job in jobs_of(folder)] if whole else [folder]:
        try:
            config = load(TrackingConfig, str(place / "params.yaml"))
            config = config if seconds is None else replace(config, timeout=seconds)
            sweep = folder if whole else _sweep_folder(place)
            if sweep is not None and config not in trackings.setdefault(sweep, []):
                trackings[sweep].append(config)
            print(f"{place}: MLflow run {send(place, config, Allowance(config))} at {target_of(config).shown}")
        except InterpError as error:
            failed += 1
            print(f"{place}: {error}", file=sys.stderr)
        except Exception as error:  # an unreachable server shows as one of many exceptions
            failed += 1
            print(f"{place}: not sent ({first_line(error)}). {REMEDY}", file=sys.stderr)
    for sweep, configs in trackings.items():
        known = described(sweep)
        # A sweep that was killed without a word has not said that it is over; the user does, by naming it.
        status = known.get("status") or ("KILLED" if whole else None)
        for config in configs if status and {"name", "key"} <= known.keys() else []:
            try:
                close_sweep(config, known, str(status), Allowance(config))
                print(f"{sweep}: the sweep is {status} at {target_of(config).shown}")
            except Exception as error:  # as above
                failed += 1
                print(f"{sweep}: the sweep's parent run is not closed ({first_line(error)}). {REMEDY}", file=sys.stderr)
    return failed


def _sweep_folder(run: Path) -> Path | None:
    """The folder of the sweep that a run belongs to, if it does and the folder can be found."""
    record = read_json(run / "run.json").get("sweep") or {}
    if not (record.get("name") and record.get("key")):
        return None
    return sweep_of(run.resolve(), record["name"], record["key"], project_root())


def show(port: int) -> NoReturn:
    """Replace this process by MLflow's server on the repository's own database, for this machine only."""
    config = TrackingConfig()
    if not prepare(config, Allowance(config)):  # has said why
        raise SystemExit(1)
    print(f"MLflow: http://127.0.0.1:{port} (Ctrl-C stops it)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [*command, "--backend-store-uri", tracking_uri(config)])


if __name__ == "__main__":
    raise SystemExit(main())
