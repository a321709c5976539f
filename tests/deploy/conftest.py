"""The packaged chart, made once."""

from pathlib import Path

import pytest

from tests.deploy.chart import SOURCE, TOOLS, Chart, run, tool


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Chart:
    """As `helm package` makes it: rules and dashboards, links in the repository, are files in it."""
    helm = tool(TOOLS / "helm")
    folder: Path = tmp_path_factory.mktemp("chart")
    made = run(helm, "package", SOURCE, "--destination", folder)
    assert made.returncode == 0, made.stderr
    (package,) = folder.glob("*.tgz")
    return Chart(helm, package)
