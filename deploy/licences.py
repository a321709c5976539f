"""Writes docs/licences.md: what the image holds of others, and under which licences.

Reads requirements/runtime.lock and the metadata of what is installed. A licence it does not know is a fault.
"""  # noqa: INP001 - a script, no package

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "runtime.lock"

NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "BSD License": "BSD-3-Clause",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
}
"""What packages write where SPDX has another name."""

READ = {
    "async-timeout": "Apache-2.0",
    "colorama": "BSD-3-Clause",
}
"""Read by hand: for other systems or Pythons, or with the licence's text in place of its name."""

TAKEN = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0", "PSF-2.0"}
"""Licences under which one may ship what is unchanged, with this product's own."""

PAGE = """# Licences

The product is under [Apache-2.0](../LICENSE). The image holds these packages of others, unchanged, each with
its licence's text beside it (`*.dist-info`); `make sbom` writes them with their versions as CycloneDX. Nomad,
Redis, Prometheus and Grafana are not part of it. Python and the base image have licences of their own.

| package | licence |
|---|---|
{rows}

Written by `make docs` from `requirements/runtime.lock`. A test refuses a licence that is not one of: {taken}.
"""


def licence_of(package: str) -> str:
    """The SPDX expression.

    Raises:
        SystemExit: the package tells none that is known here.
    """
    if package in READ:
        return READ[package]
    try:
        told = metadata(package)
    except PackageNotFoundError:
        sys.exit(f"{package} is not installed; name its licence in deploy/licences.py")
    classifiers = [
        line.rpartition(" :: ")[2] for line in told.get_all("Classifier") or [] if "License" in line
    ]
    for name in (told.get("License-Expression"), told.get("License"), *classifiers):
        found = NAMES.get(name or "", name or "")
        if set(re.split(r" AND | OR ", found)) <= TAKEN:
            return found
    sys.exit(f"the licence of {package} is not one of those that are taken; look at it")


def main(page: Path) -> None:
    """Write the page."""
    packages = re.findall(r"^([a-z0-9-]+)==", LOCK.read_text(), re.MULTILINE)
    rows = "\n".join(f"| {package} | {licence_of(package)} |" for package in packages)
    page.write_text(PAGE.format(rows=rows, taken=", ".join(sorted(TAKEN))))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "licences.md")
