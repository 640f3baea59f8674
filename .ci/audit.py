#!/usr/bin/env python
"""Known weaknesses of the versions that constraints.txt pins, from the advisories at PyPI.

    python .ci/audit.py constraints.txt

Needs pip-audit beside this interpreter (`make audit` brings it). The status is 0 where none is
known, 1 where some are, and 2 where the advisories of a package could not be had: a service that
is out of reach must not look like a clean bill.
"""

import json
import subprocess
import sys

PIP_AUDIT = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format=json",
             "--progress-spinner=off"]  # fmt: skip


def verdict(report: dict) -> tuple[int, list[str]]:
    """The status and the lines to print, from pip-audit's report."""
    packages = report["dependencies"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    known = [
        f"{package['name']} {package['version']}: {weakness['id']}, mended in "
        f"{', '.join(weakness['fix_versions']) or 'no version yet'}"
        for package in packages
        for weakness in package.get("vulns", [])
    ]
    lines = [*known, f"{len(packages) - len(unknown)} packages audited, {len(known)} weaknesses"]
    if unknown:
        lines.append(
            f"no advisories could be had for {len(unknown)} packages, {', '.join(unknown[:3])}...: "
            "is the service out of reach? Nothing is known of them"
        )
    return 2 if unknown else int(bool(known)), lines


def main(requirements: str) -> int:
    run = subprocess.run([*PIP_AUDIT, "-r", requirements], capture_output=True, text=True)
    try:
        status, lines = verdict(json.loads(run.stdout))
    except json.JSONDecodeError:
        reason = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
        status, lines = 2, [f"pip-audit could not ask for advisories: {reason}"]
    print(*lines, sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
