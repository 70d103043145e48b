"""`python -m pipeline.tracking sync RUN_FOLDER...` sends runs that MLflow did not get; `... ui` shows MLflow's page."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from interp.errors import InterpError
from pipeline.config.tracking import TrackingConfig, load_tracking_config
from pipeline.tracking.client import first_line, tracking_uri
from pipeline.tracking.runs import Allowance, prepare, send


def main(arguments: list[str] | None = None) -> int:
    """Run one of the two commands; returns the exit status, 1 when any run could not be sent."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sync = commands.add_parser("sync", help="send runs that MLflow did not get")
    sync.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER")
    sync.add_argument("--seconds", type=int, help="that a run may take (default: its tracking.timeout)")
    page = commands.add_parser("ui", help="show the runs of the repository's own database on 127.0.0.1")
    page.add_argument("--port", type=int, default=5000)
    parsed = parser.parse_args(arguments)
    if parsed.command == "ui":
        show(parsed.port)
    failed = 0
    for folder in parsed.folders:
        try:
            config = load_tracking_config(str(folder / "params.yaml"))
            allowance = Allowance(config if parsed.seconds is None else replace(config, timeout=parsed.seconds))
            print(f"{folder}: MLflow run {send(folder, config, allowance)} at {tracking_uri(config)}")
        except InterpError as error:
            failed += 1
            print(f"{folder}: {error}", file=sys.stderr)
        except Exception as error:  # an unreachable server shows as one of many exceptions
            failed += 1
            remedy = "The same command tries again; with --seconds 600 it waits longer."
            print(f"{folder}: not sent ({first_line(error)}). {remedy}", file=sys.stderr)
    return min(failed, 1)


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
