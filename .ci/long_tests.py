"""Which tests ``make test`` leaves to the gate: writes tests/long_tests.txt from a report of the whole suite.

    python -m pytest --runslow -n 2 --junitxml=report.xml && python .ci/long_tests.py report.xml --minutes 9

The longest functions are listed until the others take so many minutes of processor time. Where the first function of a
file is long, what it waited for is mostly a fixture, which the next one would make instead: the file is listed whole.
"""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ElementTree  # of our own report
from collections import defaultdict
from pathlib import Path

LISTED = Path(__file__).parents[1] / "tests" / "long_tests.txt"
HEADER = "# Functions and files of tests that make test leaves to the gate; made by .ci/long_tests.py."
FIXTURE = 3.0
"""Seconds from which the first function of a file is taken to have waited for a fixture."""


def seconds_of(report: Path) -> dict[str, dict[str, float]]:
    """File -> function -> seconds, over all parameters, in the order in which they ran."""
    taken: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for case in ElementTree.parse(report).iter("testcase"):
        file = str(case.get("classname")).replace(".", "/") + ".py"
        taken[file][str(case.get("name")).partition("[")[0]] += float(case.get("time", 0))
    return taken


def long_tests(taken: dict[str, dict[str, float]], minutes: float) -> list[str]:
    """Files, and functions as ``file::function``, without which the rest takes at most so many minutes."""
    whole = {file: seconds for file, functions in taken.items()
             if (seconds := sum(functions.values())) and next(iter(functions.values())) > FIXTURE}  # fmt: skip
    single = {f"{file}::{name}": seconds for file, functions in taken.items() if file not in whole
              for name, seconds in functions.items()}  # fmt: skip
    left, listed = sum(whole.values()) + sum(single.values()), []
    for name, seconds in sorted({**whole, **single}.items(), key=lambda item: -item[1]):
        if left <= 60 * minutes:
            break
        listed.append(name)
        left -= seconds
    return sorted(listed)


def main() -> None:
    """Write the list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    arguments = parser.parse_args()
    listed = long_tests(seconds_of(arguments.report), arguments.minutes)
    LISTED.write_text("\n".join([HEADER, *listed]) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(listed)} entries in {LISTED}\n")


if __name__ == "__main__":
    main()
