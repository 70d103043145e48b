"""`python -m interp COMMAND`: prove the names on models, list what is supported, train and measure tuned lenses."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from interp.commands import tune
from interp.errors import InterpError

__all__ = ["main"]

_VERDICTS = {True: "ok  ", False: "FAIL", None: "?   "}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 1 where a model could not be loaded or fails a proof."""
    parser = argparse.ArgumentParser(prog="python -m interp", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="load models and print the table of proofs of each")
    check.add_argument("models", nargs="+", metavar="MODEL", help="a local folder or a hub id")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument("--no-attention", action="store_true", help="leave out q, k, v, scores and pattern")
    check.add_argument("--dtype", help="float32, bfloat16, float16; the checkpoint's own where not given")
    check.add_argument("--device-map", help="accelerate's placement, e.g. auto or cuda:0")
    check.add_argument("--revision", help="branch, tag or commit on the hub")
    check.add_argument("--trust-remote-code", action="store_true", help="run code that the hub repository carries")
    families = commands.add_parser("families", help="list the families that have a record, and those that are refused")
    families.add_argument("--json", action="store_true", help="print JSON")
    longer = tune.add_commands(commands)
    given = parser.parse_args(arguments)
    if given.command in longer:
        return longer[given.command](given)
    return _families(given.json) if given.command == "families" else _check(given)


def _check(given: argparse.Namespace) -> int:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    reports = []
    for name in given.models:
        report = _report(name, given)
        reports.append(report)
        if not given.json:
            print(_text(report), flush=True)
    if given.json:
        print(json.dumps(reports, indent=2))
    return int(not all(report["holds"] for report in reports))


def _report(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The proofs of one model, or why it could not be loaded."""
    from interp.model import StandardizedTransformer
    from interp.model.proof import prove

    start = time.perf_counter()
    try:
        model = StandardizedTransformer(
            name,
            dtype=given.dtype,
            device_map=given.device_map,
            revision=given.revision,
            trust_remote_code=given.trust_remote_code,
            verify=False,
        )
        loaded = time.perf_counter()
        proofs = prove(model, attention=not given.no_attention)
    except InterpError as error:
        return {"model": name, "holds": False, "error": str(error), "proofs": []}
    return {
        "model": name,
        "class": type(model._module).__name__,
        "family": model.architecture.family,
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_layers": model.num_layers,
        "holds": all(proof.holds is not False for proof in proofs),
        "loading_seconds": round(loaded - start, 2),
        "proof_seconds": round(time.perf_counter() - loaded, 2),
        "proofs": [vars(proof) for proof in proofs],
    }


def _text(report: dict[str, Any]) -> str:
    if "error" in report:
        return f"{report['model']}\n  {report['error']}\n"
    head = (
        f"{report['model']}\n  {report['class']}, family {report['family']}, {report['num_layers']} layers, "
        f"{report['dtype']}; loaded in {report['loading_seconds']} s, proved in {report['proof_seconds']} s"
    )
    width = max(len(proof["identity"]) for proof in report["proofs"])
    rows = [
        f"  {_VERDICTS[proof['holds']]}  {proof['identity']:<{width}}  {proof['layers']:>3} layers  {_numbers(proof)}"
        for proof in report["proofs"]
    ]
    undecided = sum(proof["holds"] is None for proof in report["proofs"])
    holding = f"all others hold, {undecided} undecided" if undecided else "all hold"
    verdict = holding if report["holds"] else "the names do not mean what they say; give a RenameConfig"
    return "\n".join([head, *rows, f"  {verdict}", ""])


def _numbers(proof: dict[str, Any]) -> str:
    if proof["holds"] is None:
        return f"undecided: {proof['why']}"
    if proof["about"] == "write" and proof["identity"].startswith("an edit"):
        return f"moved by {proof['difference']:.2g}, rounding {proof['allowed']:.2g} (layer {proof['layer']})"
    return f"difference {proof['difference']:.2g}, allowed {proof['allowed']:.2g} (worst: layer {proof['layer']})"


def _families(as_json: bool) -> int:
    from interp.architectures import REFUSED
    from interp.architectures.describe import described

    rows = described()
    if as_json:
        print(json.dumps({"supported": rows, "refused": REFUSED}, indent=2))
        return 0
    width = max(len(row["model_type"]) for row in rows)
    for row in rows:
        print(f"{row['model_type']:<{width}}  {row['how']}")
    print(
        f"\n{len(rows)} model types have a record. Any other whose layout is one of these is proved when it is loaded."
    )
    print("\nRefused:")
    for model_type, reason in sorted(REFUSED.items()):
        print(f"{model_type:<{width}}  {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
