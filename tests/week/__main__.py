"""`python -m tests.week`: a week in minutes; status 1 where something was lost that no counter tells."""

import argparse
import sys

from tests.week.run import week

parser = argparse.ArgumentParser(prog="python -m tests.week")
parser.add_argument("--day", type=float, default=20, help="seconds that a day takes")
parser.add_argument("--before", help="command of an earlier version, which serves on Monday: /opt/old/bin/tapline")
parser.add_argument("--seed", type=int, default=1)
given = parser.parse_args()
report = week(given.day, given.before, given.seed)
print(*report.lines, sep="\n")
sys.exit(bool(report.wrong))
