"""The command: `python -m tests.soak SECONDS`; status 1 where anything is wrong at the end."""

import argparse
import sys
import time

from tests.soak.run import soak

parser = argparse.ArgumentParser(prog="python -m tests.soak")
parser.add_argument("seconds", type=float)
parser.add_argument("--seed", type=int, default=time.time_ns() // 1000)
arguments = parser.parse_args()
report = soak(arguments.seconds, arguments.seed)
print("\n".join(report.lines))
sys.exit(1 if report.wrong else 0)
