"""The image is built and runs as it will be run: not root, nothing writable, SIGTERM to process 1.

The base is made of Debian packages: the one that the Dockerfile names cannot be had everywhere. Needed are
root, buildah, mmdebstrap and util-linux.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import ROOT, run
from tests.processes.fleet import Fleet, WorkerProcess, fleet, until
from tests.processes.jobs import held
from worker import __version__

pytestmark = [pytest.mark.image, pytest.mark.anyio]

CONTAINED = Path(__file__).parent / "contained.py"
BUILD_SECONDS = 900
MOST_BYTES = 60_000_000
PACKAGES = "python3-venv,python-is-python3,ca-certificates"


@dataclass(frozen=True)
class Image:
    """What was built, with its files mounted."""

    config: dict[str, Any]
    root: Path
    bytes: int
    """Without those of its base."""

    def start(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *self.program(*command)],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def program(self, *command: str) -> list[str]:
        path = dict(variable.split("=", 1) for variable in self.config["Env"])["PATH"]
        return [str(CONTAINED), str(self.root), self.config["User"], path, *command]


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    missing = [name for name in ("buildah", "mmdebstrap", "unshare", "setpriv") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        pytest.fail(f"needed are root and: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("image")
    storage = ("--root", folder / "storage", "--runroot", folder / "run", "--storage-driver", "vfs")

    def buildah(*arguments: str | Path) -> str:
        ended = run("buildah", *storage, *arguments, seconds=BUILD_SECONDS)
        assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
        return ended.stdout.strip()

    tar = folder / "base.tar"
    mirror = os.environ.get("DEBIAN_MIRROR")  # where mmdebstrap's own choice will not do
    made = run(
        *("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", "bookworm", tar),
        *([mirror] if mirror else []),
        seconds=BUILD_SECONDS,
    )
    assert made.returncode == 0, made.stderr
    base = buildah("from", "scratch")
    buildah("add", "--quiet", base, tar, "/")
    buildah("commit", "--quiet", base, "localhost/base")
    buildah("rm", base)
    buildah(
        *("bud", "--isolation", "chroot", "--network", "host", "--format", "docker", *_certificates(folder)),
        *("--build-arg", "PYTHON_IMAGE=localhost/base", "--build-arg", f"VERSION={__version__}"),
        *("--build-arg", "REVISION=abc123", "--build-arg", "SOURCE=https://git.example/worker"),
        *("--tag", "localhost/worker", ROOT),
    )
    sizes = {
        one["names"][0].rpartition("/")[2].partition(":")[0]: _bytes(one["size"])
        for one in json.loads(buildah("images", "--json"))
        if one.get("names")
    }
    inspected = json.loads(buildah("inspect", "--type", "image", "localhost/worker"))
    container = buildah("from", "localhost/worker")
    root = Path(buildah("mount", container))
    yield Image(inspected["Docker"]["config"], root, sizes["worker"] - sizes["base"])
    buildah("umount", container)
    buildah("rm", container)
    shutil.rmtree(folder / "storage", ignore_errors=True)


def _certificates(folder: Path) -> list[str | Path]:
    """What pip needs in the build where an own authority stands between this machine and the index."""
    bundle = os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if not bundle:
        return []
    configuration = folder / "pip.conf"
    configuration.write_text("[global]\ncert = /etc/ssl/build.pem\n")
    return ["-v", f"{configuration}:/etc/pip.conf:ro", "-v", f"{bundle}:/etc/ssl/build.pem:ro"]


def _bytes(told: str) -> int:
    number, unit = told.split()
    return int(float(number) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit])


@pytest.fixture
async def world(tmp_path: Path) -> Any:
    async with fleet(tmp_path, [held("held")]) as made:
        yield made


async def started(world: Fleet, image: Image) -> WorkerProcess:
    command = [*image.config["Entrypoint"], *image.config["Cmd"]]
    return await world.start(program=image.program(*command))


def process_one(worker: WorkerProcess) -> int:
    """The process that is number 1 in there, by the number it has out here."""
    pid = worker.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def numbers_of(pid: int) -> list[int]:
    """A process's numbers, out here first and in its own world last."""
    status = Path(f"/proc/{pid}/status").read_text()
    return [int(number) for number in status.partition("NSpid:")[2].splitlines()[0].split()]


def test_the_image_is_described(image: Image) -> None:
    config = image.config
    labels = {name.rpartition(".")[2]: value for name, value in config["Labels"].items()}

    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["dispatch-worker"]
    assert config["Cmd"] == ["run"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "dispatch-worker", "healthcheck"]
    assert labels["version"] == __version__
    assert labels["revision"] == "abc123"
    assert labels["source"] == "https://git.example/worker"
    assert labels["licenses"] == "Apache-2.0"


def test_the_image_is_small(image: Image) -> None:
    assert image.bytes < MOST_BYTES


def test_nothing_that_builds_is_shipped(image: Image) -> None:
    shipped = {path.name for path in (image.root / "opt" / "worker" / "bin").iterdir()}

    assert "dispatch-worker" in shipped
    assert [name for name in shipped if name.startswith("pip")] == []
    for path in ("opt/build", "src", "wheel", "root/.cache", "usr/bin/strip"):
        assert not (image.root / path).exists(), path
    assert list((image.root / "opt" / "worker").rglob("*.pyi")) == []
    assert list((image.root / "opt" / "worker").rglob("*.opt-1.pyc")) == []


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        ("/file", "Read-only file system"),
        ("/opt/worker/file", "Read-only file system"),
        ("/etc/passwd", "Permission denied"),
    ],
)
def test_nobody_writes_into_it(image: Image, path: str, refusal: str) -> None:
    code = f"import os; print(os.getuid(), os.getgid(), os.getgroups()); open({path!r}, 'a')"

    ended = image.start("python", "-c", code)

    assert ended.stdout.strip() == "65532 65532 []"
    assert refusal in ended.stderr


def test_it_would_be_no_different_if_the_root_were_writable(image: Image) -> None:
    """Not even the files that are its own belong to the user it runs as."""
    owned = [path for path in image.root.rglob("*") if path.lstat().st_uid == 65532]

    assert owned == []


async def test_process_one_drains_on_sigterm_and_the_next_one_carries_on(world: Fleet, image: Image) -> None:
    first = await started(world, image)
    message_id = await world.holds()
    health = image.start(
        "dispatch-worker", "healthcheck", WORKER_HTTP_ADDR=first.http.removeprefix("http://")
    )
    number = process_one(first)
    numbers = numbers_of(number)

    os.kill(number, signal.SIGTERM)
    code = await first.ended(30)

    assert health.returncode == 0, health.stderr
    assert numbers[-1] == 1
    assert code == 0
    assert len(first.logged("worker.draining")) == len(first.logged("worker.stopped")) == 1
    assert first.logged("worker.drain_cut_off") == []
    second = await started(world, image)
    await until(lambda: _owned_by(world, message_id, second.name), 30, "the second has the message")
    world.release()
    assert (await world.final(message_id)).verdict == "succeeded"
    assert world.children_by_token() == {message_id: 1}


async def _owned_by(world: Fleet, message_id: str, name: str) -> bool:
    return await world.owner(message_id) == name


def test_health_without_a_worker_is_bad(image: Image) -> None:
    assert image.start("dispatch-worker", "healthcheck", WORKER_HTTP_ADDR="127.0.0.1:1").returncode == 1
