"""Say which locked dependencies have known vulnerabilities; exit code 1 if there is a newer version without one.

Without a source of advisories (https://osv.dev, or the OSV server named by the first argument) nothing is audited: one
line says so, and the exit code is 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"


def main(arguments: Sequence[str]) -> int:
    """Audit the lock file, or the requirements file named by the second argument."""
    server, lock = (*arguments, *("https://api.osv.dev/v1/query", str(LOCK))[len(arguments) :])
    try:
        urlopen(server, json.dumps({"package": {"name": "pip", "ecosystem": "PyPI"}}).encode(), timeout=15).close()
    except OSError as error:
        print(f"dependencies are not audited: {server}: {error}")
        return 0
    command = [sys.executable, "-m", "pip_audit", "--requirement", lock, "--disable-pip", "--require-hashes"]
    command += ["--vulnerability-service", "osv", "--osv-url", server, "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("{"):
        print(f"the audit failed: {done.stderr}")
        return 1
    packages = json.loads(done.stdout)["dependencies"]
    fixable = False
    for package in packages:
        for found in package.get("vulns", ()):
            fixes = ", ".join(found["fix_versions"])
            fixable = fixable or bool(fixes)
            advice = f"fixed in {fixes}" if fixes else "no version without it yet"
            print(f"{package['name']} {package['version']}: {found['id']}: {advice}")
    audited = sum("vulns" in package for package in packages)
    print(f"{audited} of {len(packages)} locked dependencies audited")
    return int(fixable)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
