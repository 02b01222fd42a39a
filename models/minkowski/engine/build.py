"""Building MinkowskiEngine from its source package on PyPI, with our patch, for the installed torch, on CPU.

The source package is taken by its address and hash, not by pip: pip would run the unrepaired setup.py for
the package's metadata, which uninstalls MinkowskiEngine and needs a numpy of 2021. The build tools go into a
folder of their own; the environment is not touched before the finished wheel is installed into it.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from stagewright.document import InputError, read_bytes, write_atomically

from .installed import PATCH, VERSION, build_key, found_version, wanted_version

SOURCE_NAME = f"MinkowskiEngine-{VERSION}"
SOURCE_URL = (
    "https://files.pythonhosted.org/packages/21/5c/"
    "c543c4bc5fbe73ac3e38465b3da4f24a61f7a4ac5baec867e582e94aa551/MinkowskiEngine-0.5.4.tar.gz"
)
SOURCE_SHA256 = "b1879c00d0b0b1d30ba622cce239886a7e3c78ee9da1064cdfe2f64c2ab15f94"
BUILD_TOOLS = ("setuptools==79.0.1", "wheel==0.45.1", "ninja==1.13.0")
BYTES_PER_JOB = 2 * 2**30
"""What the largest compiler process takes, measured with gcc 12."""
DOWNLOAD_TIMEOUT_S = 120

Report = Callable[[str], None]


def default_cache() -> Path:
    """Return the folder that keeps wheels: outside of any repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "stagewright" / "minkowski"


def install(cache: Path, source: Path | None, jobs: int | None, report: Report) -> None:
    """Install our build of MinkowskiEngine into this environment; build it if the cache has no wheel.

    Args:
        source: the source package; None: it is fetched from PyPI.
        jobs: compilers at a time; None: as many as processors and memory allow.
        report: is told what happens, line by line.

    Raises:
        InputError: something needed is missing, or a step fails; the message names the log.
    """
    if found_version() == wanted_version():
        report(f"MinkowskiEngine {wanted_version()} is installed")
        return
    wheel = cached_wheel(cache, source, jobs, report)
    report(f"installing {wheel.name}")
    command = ("-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", str(wheel))
    _run([sys.executable, *command], cache / "install.log")
    check = "import MinkowskiEngine as ME; print(ME.__version__)"
    _run([sys.executable, "-c", check], cache / "install.log")
    report(f"MinkowskiEngine {wanted_version()} is installed")


def cached_wheel(cache: Path, source: Path | None, jobs: int | None, report: Report) -> Path:
    """Return the wheel for this environment from the cache, built first if it is not there.

    Raises:
        InputError: as `install`.
    """
    folder = cache / f"{VERSION}-{build_key()}"
    with _locked(cache):
        found = sorted(folder.glob("*.whl"))
        if found:
            return found[0]
        _demand_compiler()
        archive = _source_archive(cache, source, report)
        with tempfile.TemporaryDirectory(prefix="minkowski-", dir=cache) as work:
            tree = _patched_source(archive, Path(work), cache / "patch.log")
            built = _build(tree, Path(work), cache / "build.log", jobs or _default_jobs(), report)
            folder.mkdir(exist_ok=True)
            os.replace(built, folder / built.name)
    return folder / built.name


def _build(tree: Path, work: Path, log: Path, jobs: int, report: Report) -> Path:
    """Compile a patched source tree; return the wheel."""
    tools = work / "tools"
    report("fetching the build tools")
    install_tools = ("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tools))
    _run([sys.executable, *install_tools, *BUILD_TOOLS], log)
    environment = dict(os.environ) | {
        "PYTHONPATH": str(tools),
        "PATH": f"{tools / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        "MAX_JOBS": str(jobs),
        "CUDA_VISIBLE_DEVICES": "",
    }
    report(
        f"compiling MinkowskiEngine with {jobs} compilers at a time: about 10 minutes of one; see {log}"
    )
    command = [sys.executable, "setup.py", "bdist_wheel", "--dist-dir", str(work / "dist")]
    nice = ["nice"] if shutil.which("nice") else []
    _run([*nice, *command], log, cwd=tree, environment=environment)
    return next((work / "dist").glob("*.whl"))


def _patched_source(archive: Path, work: Path, log: Path) -> Path:
    """Unpack the source, apply the patch and write our version into it; return its folder."""
    with tarfile.open(archive) as packed:
        packed.extractall(work, filter="data")
    tree = work / SOURCE_NAME
    if shutil.which("patch"):
        command = ["patch", "--strip=1", "--batch", f"--input={PATCH.resolve()}"]
    elif shutil.which("git"):
        command = ["git", "apply", "--strip=1", str(PATCH.resolve())]
    else:
        raise InputError("there is neither `patch` nor `git` to apply engine.patch; install one")
    # Inside another repository git would pass over the files in silence.
    environment = dict(os.environ) | {"GIT_CEILING_DIRECTORIES": str(work)}
    _run(command, log, cwd=tree, environment=environment)
    init = tree / "MinkowskiEngine" / "__init__.py"
    text, count = re.subn(
        r'^__version__ = ".*"$', f'__version__ = "{wanted_version()}"', init.read_text(), flags=re.M
    )
    assert count == 1, "MinkowskiEngine/__init__.py names its version once"
    init.write_text(text)
    return tree


def _source_archive(cache: Path, source: Path | None, report: Report) -> Path:
    """Return the source package with the known hash: the given one, the cached one, or from PyPI."""
    path = source or cache / f"{SOURCE_NAME}.tar.gz"
    if source is None and not path.is_file():
        report(f"fetching {SOURCE_URL}")
        try:
            with urllib.request.urlopen(SOURCE_URL, timeout=DOWNLOAD_TIMEOUT_S) as answer:
                write_atomically(path, answer.read())
        except (urllib.error.URLError, OSError) as error:
            raise InputError(
                f"{SOURCE_URL}: cannot be fetched: {error}; fetch it elsewhere and name it with --source"
            ) from None
    found = hashlib.sha256(read_bytes(path)).hexdigest()
    if found != SOURCE_SHA256:
        raise InputError(
            f"{path}: SHA-256 is {found}, expected {SOURCE_SHA256}; remove it and fetch it again"
        )
    return path


def _demand_compiler() -> None:
    """Raise InputError if a C++ compiler or Python's headers are missing."""
    compiler = os.environ.get("CXX") or os.environ.get("CC") or "c++"
    if not (shutil.which(compiler) or shutil.which("g++")):
        raise InputError(
            f"there is no C++ compiler ({compiler}), which building MinkowskiEngine needs; install one "
            "(Debian: apt install g++)"
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise InputError(
            f"{header}: is missing, which building MinkowskiEngine needs; install Python's headers "
            "(Debian: apt install python3-dev)"
        )


def _default_jobs() -> int:
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, memory_bytes // BYTES_PER_JOB - 1))


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """Let one process build at a time; another waits and then finds the wheel."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / "lock").open("w")
    except OSError as error:
        raise InputError(
            f"{cache}: cannot be written: {error.strerror}; name another --cache"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(
    command: Sequence[str],
    log: Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a command with its output in a log.

    Raises:
        InputError: it fails; the message has its last line.
    """
    with log.open("w") as output:
        done = subprocess.run(
            command, cwd=cwd, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode != 0:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no message"]
        errors = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
        raise InputError(
            f"{' '.join(command[:4])} fails with status {done.returncode}: {(errors or lines)[-1].strip()}; "
            f"see {log}"
        )
