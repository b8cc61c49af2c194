"""The command: all targets in turn, or those that are named; status 1 where one found a fault."""

import argparse
import resource
import sys
import time
import traceback

from tests.fuzz.runner import FaultError, run, targets


def main() -> None:
    """Share the time among the targets and say what each did."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("seconds", type=float, help="time for all targets together")
    parser.add_argument("targets", nargs="*", choices=[*targets(), []], help="all where none is named")
    parser.add_argument("--seed", type=int, help="seed of the first case; with 0 seconds that case alone")
    arguments = parser.parse_args()
    chosen = arguments.targets or targets()
    seed = arguments.seed if arguments.seed is not None else time.time_ns() // 1000
    faults = 0
    for target in chosen:
        try:
            tally = run(target, arguments.seconds / len(chosen), seed)
        except FaultError as error:
            faults += 1
            traceback.print_exception(error.__cause__)
            print(f"FAULT {error}")
            continue
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{target}: {tally.cases} cases in {tally.seconds:.0f} s, no fault, {peak_mb:.0f} MB at most so far")
    sys.exit(1 if faults else 0)


main()
