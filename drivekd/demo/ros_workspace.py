"""Builds ros2_ws with colcon against the ROS wheels of the running virtual environment, and plays one round trip.

    build_workspace(source, out, log=...)    -> the install folder; skipped when nothing changed
    ros_environment(install)                 -> environment of a ROS child process, isolated from the machine's other ROS traffic
    run_ros_demo(bundle, install, ...)       -> node, player and listener as three processes; the typed answers

The wheels' CMake exports name their builder's Python and numpy include folders. The environment is left as it is: an overlay
prefix `out/prefix` links to it and holds corrected copies of the packages concerned. Imports neither rclpy nor torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from drivekd.errors import DrivekdError, UsageError

STAMP = "drivekd_sources.sha256"
BUILD_TIMEOUT_S = 900  # 20 s on two cores; a loaded machine may be slow, a hung compiler must end
LOG_TAIL_LINES = 15
STOP_TIMEOUT_S = 10.0
FOREIGN_PYTHON = re.compile(r"/opt/python/[^;\"]*/include/python3\.\d+")
FOREIGN_NUMPY = re.compile(r"/opt/python/[^;\"]*/numpy/_core/include")


def build_workspace(source: Path, out: Path, *, log: Path) -> Path:
    """Build `source` (the folder that holds src/) into `out`/build and `out`/install; returns `out`/install.

    log: file that takes colcon's output. Raises UsageError when a tool or the wheels are missing, DrivekdError with the end
    of the log when the build fails.
    """
    colcon = _colcon()
    source, out = source.resolve(), out.resolve()  # CMake and ament read relative prefixes from other folders
    install = out / "install"
    stamp, digest = install / STAMP, sources_digest(source / "src")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == digest:
        return install
    stamp.unlink(missing_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    prefix = _overlay(out / "prefix")
    command = [sys.executable, str(colcon), "--log-base", str(out / "log"), "build"]
    command += ["--base-paths", str(source / "src"), "--build-base", str(out / "build"), "--install-base", str(install)]
    command += ["--event-handlers", "console_direct+", "--cmake-args", f"-DPython3_EXECUTABLE={sys.executable}"]
    command += ["-DBUILD_TESTING=OFF", "-DCMAKE_BUILD_TYPE=Release", "--no-warn-unused-cli"]
    with log.open("w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(
                command, stdout=stream, stderr=subprocess.STDOUT, env=_build_environment(prefix), timeout=BUILD_TIMEOUT_S
            )
        except subprocess.TimeoutExpired as error:
            raise DrivekdError(f"building {source} took longer than {BUILD_TIMEOUT_S} s; log: {log}") from error
    if done.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:])
        raise DrivekdError(f"building {source} failed (colcon exit code {done.returncode}); end of {log}:\n{tail}")
    stamp.write_text(digest, encoding="utf-8")
    return install


def ros_environment(install: Path) -> dict[str, str]:
    """Environment for a child process that uses the installed workspace: own ROS domain, this machine only, large images.

    The domain differs from call to call: processes that shall meet need the same returned environment.
    """
    python = f"lib/python3.{sys.version_info.minor}/site-packages"
    packages = [install / name for name in ("drivekd_msgs", "drivekd_ros", "drivekd_bringup")]
    missing = [str(package) for package in packages if not package.is_dir()]
    if missing:
        raise UsageError(f"no built workspace: {', '.join(missing)} not found; build it with build_workspace")
    prefix = Path(sys.prefix)
    profile = str(install / "drivekd_bringup" / "share" / "drivekd_bringup" / "dds" / "fastdds.xml")
    libraries = [packages[0] / "lib", prefix / "lib", *sorted((prefix / python).glob("ros_*.libs"))]
    environment = dict(os.environ)
    environment.update(
        AMENT_PREFIX_PATH=os.pathsep.join(map(str, [*packages, prefix])),
        CMAKE_PREFIX_PATH=os.pathsep.join(map(str, [*packages, prefix])),
        PYTHONPATH=_joined([package / python for package in packages[:2]], environment.get("PYTHONPATH")),
        PATH=_joined([prefix / "bin"], environment.get("PATH")),
        LD_LIBRARY_PATH=_joined(libraries, environment.get("LD_LIBRARY_PATH")),
        FASTRTPS_DEFAULT_PROFILES_FILE=profile,
        FASTDDS_DEFAULT_PROFILES_FILE=profile,
        ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST",
        RMW_IMPLEMENTATION="rmw_fastrtps_cpp",
        ROS_DOMAIN_ID=str(1 + secrets.randbelow(100)),  # 0 is everybody's; above 101 Linux's ephemeral ports collide
        PYTHONUNBUFFERED="1",
    )
    environment["_ROS_WHEELS_BOOTSTRAP_COMPLETE"] = "1"  # LD_LIBRARY_PATH is complete: the wheels' .pth need not re-execute
    return environment


def run_ros_demo(
    bundle: Path,
    install: Path,
    frames: Sequence[Path] | Path,
    *,
    ego_speed_mps: Sequence[float] = (),
    cameras: Sequence[str] = ("CAM_FRONT",),
    count: int = 3,
    rate_hz: float = 2.0,
    timeout_s: float = 60.0,
    on_line: Callable[[str], None] = lambda line: None,
    parameters: Sequence[str] = (),
    node: Sequence[str] = ("-m", "drivekd_ros.main"),
) -> list[dict[str, object]]:
    """Play frames through real topics to a real node and return its typed answers (see drivekd_ros.listener).

    cameras: the bundle's, from whose manifest the node has them. frames: images, len(cameras) a frame, or one video file.
    ego_speed_mps: one per frame, m/s, sent as TwistStamped. count: typed answers to wait for. on_line: told of every answer as a
    JSON line. parameters: more "name:=value" for the node. node: Python arguments that start it. Each answer has "frame", the
    index of the frame that it is about. Raises DrivekdError with the processes' last words when the node ends early or answers
    are missing after timeout_s.
    """
    environment = ros_environment(install.resolve())
    topics = [f"/{camera}/image" for camera in cameras]
    settings = [
        f"bundle:={bundle}",
        f"camera_topics:={json.dumps(topics)}",
        "reliability:=reliable",
        f"max_frame_age_ms:={min(timeout_s * 1e3, 6e4):.1f}",
        f"twist_required:={json.dumps(bool(ego_speed_mps))}",
        *parameters,
    ]
    source = ["--video", str(frames)] if isinstance(frames, Path) else ["--image", *map(str, frames)]
    speeds = ["--speed", *map(str, ego_speed_mps)] if ego_speed_mps else []
    with ExitStack() as stack:

        def start(*words: str) -> ChildProcess:
            return stack.enter_context(child_process([sys.executable, *words], environment))

        listener = start("-m", "drivekd_ros.listener", "--count", str(count), "--timeout", str(timeout_s))
        running = start(*node, "--ros-args", *_repeated("-p", settings))
        player = start("-m", "drivekd_ros.player", *source, *_repeated("--topic", topics), *speeds, "--rate", str(rate_hz))
        _watch(listener, {"node": running, "player": player}, timeout_s + STOP_TIMEOUT_S, on_line)
    played = {line["stamp_ns"]: line["index"] for line in map(json.loads, player.lines)}
    answers = [json.loads(line) for line in listener.lines]
    return [{**answer, "frame": played.get(answer["stamp_ns"])} for answer in answers]


def _watch(listener: ChildProcess, others: dict[str, ChildProcess], timeout_s: float, on_line: Callable[[str], None]) -> None:
    """Pass the listener's lines on until it ends with 0. Raises DrivekdError when it does not or another ends before it."""
    due_s = time.monotonic() + timeout_s
    told = 0
    while listener.process.poll() is None:
        for name, other in others.items():
            if other.process.poll() is not None:
                raise DrivekdError(f"the {name} ended with exit code {other.process.returncode}:\n{other.tail()}")
        if time.monotonic() > due_s:
            raise DrivekdError(f"the listener did not end within {timeout_s:.0f} s")
        told = _tell(listener.lines, told, on_line)
        time.sleep(0.05)
    listener.join()
    _tell(listener.lines, told, on_line)
    if listener.process.returncode:
        raise DrivekdError(f"{listener.tail()}\nthe node's last words:\n{others['node'].tail()}")


class ChildProcess:
    """A child process whose stdout lines and stderr lines are collected by two threads."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            encoding="utf-8",
        )
        self.lines: list[str] = []
        self._talk: list[str] = []
        pairs = ((self.process.stdout, self.lines), (self.process.stderr, self._talk))
        self._threads = [threading.Thread(target=_collect, args=pair, daemon=True) for pair in pairs]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until everything that an ended process wrote is collected."""
        for thread in self._threads:
            thread.join(STOP_TIMEOUT_S)

    def tail(self) -> str:
        """The last words on stderr."""
        self._threads[1].join(0.5)
        return "\n".join(self._talk[-LOG_TAIL_LINES:])


@contextmanager
def child_process(command: Sequence[str], environment: dict[str, str]) -> Iterator[ChildProcess]:
    """Start a process; ask it to stop at the end, kill it when it does not."""
    child = ChildProcess(command, environment)
    try:
        yield child
    finally:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGINT)
        try:
            child.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()
        child.join()


def _collect(stream: Iterator[str], lines: list[str]) -> None:
    lines.extend(line.rstrip("\n") for line in stream)


def _tell(lines: Sequence[str], told: int, on_line: Callable[[str], None]) -> int:
    """Pass on the lines that are new since the last call; returns how many there are."""
    known = len(lines)
    for line in lines[told:known]:
        on_line(line)
    return known


def _colcon() -> Path:
    """The environment's colcon. Raises UsageError naming what is missing."""
    colcon = Path(sys.prefix) / "bin" / "colcon"
    if not colcon.is_file() or not (Path(sys.prefix) / "share" / "rosidl_default_generators").is_dir():
        raise UsageError(f"{sys.prefix} holds no ROS build tools; install them: pip install -c constraints.txt -e '.[ros-test]'")
    for tool, package in (("cmake", "cmake"), ("make", "make"), ("c++", "g++")):
        if shutil.which(tool, path=_joined([Path(sys.prefix) / "bin"], os.environ.get("PATH"))) is None:
            raise UsageError(f"building messages needs {tool}; install it: apt-get install {package}")
    return colcon


def sources_digest(source: Path) -> str:
    """sha256 over every source file's path and content, the Python, the environment and this builder."""
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder; expected ROS packages there")
    total = hashlib.sha256(f"{sys.version} {sys.prefix}".encode() + Path(__file__).read_bytes())
    for file in sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        total.update(f"\0{file.relative_to(source)}\0".encode() + file.read_bytes())
    return total.hexdigest()


def _overlay(prefix: Path) -> Path:
    """A prefix of links into the environment, with corrected copies of the packages whose CMake files name foreign folders."""
    import numpy

    python_include, numpy_include = sysconfig.get_paths()["include"], numpy.get_include()
    shutil.rmtree(prefix, ignore_errors=True)
    (prefix / "share").mkdir(parents=True)
    for name in ("bin", "include", "lib"):
        (prefix / name).symlink_to(Path(sys.prefix) / name)
    for package in (Path(sys.prefix) / "share").iterdir():
        foreign = [
            file for file in package.glob("cmake/*.cmake") if "/opt/python/" in file.read_text(encoding="utf-8", errors="replace")
        ]
        if not foreign:
            (prefix / "share" / package.name).symlink_to(package)
            continue
        shutil.copytree(package, prefix / "share" / package.name)
        for file in foreign:
            text = FOREIGN_NUMPY.sub(numpy_include, file.read_text(encoding="utf-8"))
            (prefix / "share" / package.name / "cmake" / file.name).write_text(
                FOREIGN_PYTHON.sub(python_include, text), encoding="utf-8"
            )
    return prefix


def _build_environment(prefix: Path) -> dict[str, str]:
    environment = dict(os.environ)
    environment["PATH"] = _joined([Path(sys.prefix) / "bin"], environment.get("PATH"))
    environment["AMENT_PREFIX_PATH"] = environment["CMAKE_PREFIX_PATH"] = str(prefix)
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # nothing is written into the source tree
    environment.setdefault("MAKEFLAGS", f"-j{os.cpu_count() or 1}")
    return environment


def _joined(folders: Sequence[Path], rest: str | None) -> str:
    return os.pathsep.join([*map(str, folders), *([rest] if rest else [])])


def _repeated(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]
