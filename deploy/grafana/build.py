"""Writes the dashboards: `python deploy/grafana/build.py`, next to itself or into the folder given.

Decides nothing.
"""  # noqa: INP001 - scripts, not a package

import sys
from pathlib import Path

from dashboard import text_of
from one_job import ONE_JOB
from overview import OVERVIEW


def main(folder: Path) -> None:
    """Write both files."""
    for dashboard in (OVERVIEW, ONE_JOB):
        (folder / f"{dashboard.uid}.json").write_text(text_of(dashboard))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
