"""`python -m experiments.digits`: every rule on two overlaid digits, each at its own best learning
rate.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import torch

from experiments.arguments import at_least

from .data import digits
from .report import table, write
from .study import BATCH, MEASURE_EVERY, RATES, Outcome, baselines, methods, study

HERE = Path(__file__).parent


def _rules(text: str) -> list[str]:
    known = list(methods())
    asked = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise argparse.ArgumentTypeError(
            f"unknown rule {', '.join(map(repr, unknown or ['']))}; choose from {', '.join(known)}"
        )
    return [name for name in known if name in asked]


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.zeros((), device=device)
    # a CPU build of torch answers with an assertion
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be used: {str(error).splitlines()[0]}"
        ) from error
    return device


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.digits",
        description="Two scikit-learn digits overlaid on one canvas, a shared trunk, two heads: "
        "classify the left and the right digit. Every rule runs all "
        f"seeds × {len(RATES)} learning rates as one vmapped program, is judged at the rate that "
        "is best on validation data, and is compared on test data "
        "with two networks that learnt one task alone.",
        epilog="The two single-task baselines always run, first. Results are written after every "
        "finished method, so Ctrl-C (exit status 130) loses only the "
        "method at work. At the defaults this takes about two minutes on one idle core.",
    )
    parser.add_argument(
        "--rules",
        type=_rules,
        default=list(methods()),
        metavar="A,B,…",
        help=f"comma-separated, from {', '.join(methods())} (default: all)",
    )
    parser.add_argument(
        "--seeds",
        type=at_least(2),
        default=16,
        metavar="N",
        help="seeds 0 … N-1, at least 2 for a standard error (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=at_least(1),
        default=10,
        metavar="N",
        help="passes over the training pairs (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        type=_device,
        default="cpu",
        help="of torch, for instance cpu or cuda (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=at_least(1),
        default=1,
        metavar="N",
        help="CPU threads of torch (default: %(default)s: the matrices are small, and threads "
        "that wait for one another cost more than they save)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=HERE / "out",
        help="folder for results.json, table.md and digits.png (default: experiments/digits/out)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; 0 when done, 130 when interrupted."""
    parser = _parser()
    asked = parser.parse_args(argv)
    mpl.use("agg")
    try:
        asked.out.mkdir(parents=True, exist_ok=True)  # fails now rather than after the first method
    except OSError as error:
        parser.error(f"argument --out: {asked.out} cannot be made a folder: {error.strerror}")
    settings: dict[str, object] = {
        "seeds": asked.seeds,
        "epochs": asked.epochs,
        "batch": BATCH,
        "rates": list(RATES),
        "conflict looked at every, steps": MEASURE_EVERY,
        "device": str(asked.device),
        "torch": torch.__version__,
        "threads": asked.threads,
    }
    available = methods()
    todo = baselines(asked.device) | {name: available[name] for name in asked.rules}
    source = digits(asked.device)
    outcomes: dict[str, Outcome] = {}
    paths: list[Path] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(asked.threads)
    try:
        for name, method in todo.items():
            start = time.perf_counter()
            outcome = study(name, method, source, asked.seeds, asked.epochs)
            outcomes[name] = outcome
            paths = write(outcomes, settings, asked.out)
            accuracy = ", ".join(
                f"{task} {100 * sum(values) / len(values):.2f} %"
                for task, values in outcome.test.items()
            )
            print(
                f"{len(outcomes)}/{len(todo)} {name}: {accuracy} at rate "
                f"{outcome.rates[outcome.best]:g} ({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    except KeyboardInterrupt:
        if outcomes:
            write(outcomes, settings, asked.out)  # the interruption may have come between two files
            print(
                f"\ninterrupted; {asked.out} holds the results of: {', '.join(outcomes)}",
                file=sys.stderr,
            )
        else:
            print(
                "\ninterrupted before the first method was finished; nothing was written to "
                f"{asked.out}",
                file=sys.stderr,
            )
        return 130
    finally:
        torch.set_num_threads(threads)
    print("\n" + table(outcomes))
    print(f"written: {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
