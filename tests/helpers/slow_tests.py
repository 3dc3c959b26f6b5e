"""Run the slow tests, each file in a process of its own: python -m helpers.slow_tests [--minutes N] [pytest arguments].

Ray can end a process that starts and stops it many times, long after the test that did so. With `--minutes` no file
starts after N minutes, and the files that were left out are listed. The commit chooses which file comes first: its
hash, as a number, rotates the list of files. So a failed run can be repeated with the same commit, and every file comes
first at some commit.
"""

import argparse
import subprocess
import sys
import time

from helpers import ROOT

_PYTEST = [sys.executable, "-m", "pytest", "-m", "slow", "--timeout", "600"]
_NO_TESTS = 5  # exit code of pytest


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the slow tests, each file in a process of its own.")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no file after this time")
    options, arguments = parser.parse_known_args()
    start, failed, left_out = time.monotonic(), [], []
    files = slow_files(arguments)
    first = commit_number() % max(1, len(files))
    for file in files[first:] + files[:first]:
        if time.monotonic() - start > 60 * options.minutes:
            left_out.append(file)
            continue
        flags = [argument for argument in arguments if argument.startswith("-")]
        if subprocess.run([*_PYTEST, *flags, file], cwd=ROOT, check=False).returncode not in (0, _NO_TESTS):
            failed.append(file)
    print(f"slow tests: {len(files) - len(failed) - len(left_out)} files passed, {len(failed)} failed", flush=True)
    for title, names in (("failed", failed), ("left out, because the time is over", left_out)):
        for name in names:
            print(f"{title}: {name}", flush=True)
    return 1 if failed else 0


def slow_files(arguments: list[str]) -> list[str]:
    """Return the files with slow tests among the files and folders in the arguments, by default among all."""
    command = [*_PYTEST, "--collect-only", "-q", *(argument for argument in arguments if not argument.startswith("-"))]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    files = dict.fromkeys(line.partition("::")[0] for line in listed.stdout.splitlines() if "::" in line)
    if not files:
        sys.exit(listed.stdout + listed.stderr)
    return list(files)


def commit_number() -> int:
    """Return the hash of the checked-out commit as a number, or 0 outside of a git checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return int(head, 16) if head else 0


if __name__ == "__main__":
    sys.exit(main())
