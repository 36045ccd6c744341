"""`python -m experiments.digits`: every rule on two overlaid digits, each at its own best rate."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.arguments import among, at_least, device, folder, seeds
from experiments.common.command import DataError, alone_in
from experiments.common.pool import Terminated

from .data import digits
from .report import table, write
from .study import BATCH, MEASURE_EVERY, RATES, Method, Outcome, baselines, methods, study

HERE = Path(__file__).parent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.digits",
        description="Two scikit-learn digits overlaid on one canvas, a shared trunk, two heads: "
        "classify the left and the right digit. Every rule runs all "
        f"seeds × {len(RATES)} learning rates as one vmapped program, is judged at the rate that "
        "is best on validation data, and is compared on test data "
        "with two networks that learnt one task alone.",
        epilog="The two single-task baselines always run, first. Results are written after every "
        "finished method, so Ctrl-C and SIGTERM (exit status 130, 143) lose only "
        "the method at work. At the defaults this takes about two minutes on one idle core.",
    )
    parser.add_argument(
        "--rules",
        type=among(list(methods())),
        default=list(methods()),
        metavar="A,B,…",
        help=f"comma-separated, from {', '.join(methods())} (default: all)",
    )
    parser.add_argument(
        "--seeds",
        type=seeds,
        default="16",
        metavar="N or A:B",
        help="seeds 0 … N-1, or A … B-1; at least 2 (default: %(default)s)",
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
        type=device,
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
        type=folder,
        default=str(HERE / "out"),
        help="folder for results.json, table.md and digits.png (default: experiments/digits/out)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; 0 when done, 130 after Ctrl-C, 143 after SIGTERM."""
    parser = _parser()
    given = parser.parse_args(argv)
    settings: dict[str, object] = {
        "seeds": list(given.seeds),
        "epochs": given.epochs,
        "batch": BATCH,
        "rates": list(RATES),
        "steps between measurements of conflict": MEASURE_EVERY,
        "device": str(given.device),
        "torch": torch.__version__,
        "threads": given.threads,
    }
    available = methods()
    todo = baselines(given.device) | {
        name: method for name, method in available.items() if name in given.rules
    }
    outcomes: dict[str, Outcome] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(given.threads)
    try:
        with alone_in(given.out):
            try:
                paths = _run(todo, given, settings, outcomes)
            except KeyboardInterrupt as stop:
                if outcomes:
                    write(outcomes, settings, given.out)  # it may have come between two files
                    said = f"interrupted; {given.out} holds the results of: {', '.join(outcomes)}"
                else:
                    said = "interrupted before the first method was finished; "
                    said += f"nothing was written to {given.out}"
                print(f"\n{said}", file=sys.stderr)
                return 143 if isinstance(stop, Terminated) else 130
    except DataError as error:
        parser.error(str(error))
    finally:
        torch.set_num_threads(threads)
    print("\n" + table(outcomes))
    print(f"written: {', '.join(map(str, paths))}")
    return 0


def _run(
    todo: dict[str, Method],
    given: argparse.Namespace,
    settings: dict[str, object],
    outcomes: dict[str, Outcome],
) -> list[Path]:
    """Put the outcome of every method into `outcomes`, and write the files after each."""
    source, paths = digits(given.device), []
    for name, method in todo.items():
        start = time.perf_counter()
        outcome = outcomes[name] = study(name, method, source, given.seeds, given.epochs)
        paths = write(outcomes, settings, given.out)
        accuracy = ", ".join(
            f"{task} {100 * sum(values) / len(values):.2f} %"
            for task, values in outcome.test.items()
        )
        print(
            f"{len(outcomes)}/{len(todo)} {name}: {accuracy} at rate "
            f"{outcome.rates[outcome.best]:g} ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    return paths


if __name__ == "__main__":
    sys.exit(main())
