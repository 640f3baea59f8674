"""Every chapter in Binder's environment, top to bottom, and the memory that its kernel took.

`make check-binder` runs this. It does what Binder does with a copy of the repository: a fresh
Python, `.binder/requirements.txt`, `.binder/postBuild`, JupyterLab under `.binder/start`. Then it
opens each notebook through the server's API, as a browser would, and runs its cells. A cell that
raises or a kernel that needs more than the limit ends it with status 1.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from contextlib import contextmanager
from pathlib import Path

from tornado.websocket import websocket_connect

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 1_000  # MB of resident memory; Binder promises one or two times as much
PEAK = "int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024 // 10**6"


def copy_repository(target: Path) -> None:
    """The files that git knows or would add, as they stand."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def replace_torch(repository: Path, requirement: str) -> None:
    """Ask pip's own index for another PyTorch, where the one in .binder is out of reach."""
    file = repository / ".binder" / "requirements.txt"
    lines = [line for line in file.read_text().splitlines() if "--extra-index-url" not in line]
    file.write_text("\n".join([*lines, requirement]) + "\n")
    file = repository / "constraints.txt"
    lines = file.read_text().splitlines()
    pinned = [line for line in lines if line.split("==")[0] not in ("torch", "torchvision")]
    file.write_text("\n".join(pinned) + "\n")


def install(folder: Path, repository: Path) -> dict[str, str]:
    """Build the environment in ``folder`` and return the variables that its programs see."""
    binaries = folder / "venv" / "bin"
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables["PATH"] = f"{binaries}{os.pathsep}{os.environ['PATH']}"
    variables["XDG_CACHE_HOME"] = str(folder / "cache")  # a visitor's home is as empty
    variables["JUPYTER_RUNTIME_DIR"] = str(folder / "runtime")
    steps = [
        [sys.executable, "-m", "venv", folder / "venv"],
        [binaries / "pip", "install", "--quiet", "jupyterlab"],
        [binaries / "pip", "install", "--quiet", "-r", ".binder/requirements.txt"],
        [repository / ".binder" / "postBuild"],
    ]
    for step in steps:
        print("+", *(str(part).removeprefix(f"{folder}/") for part in step), flush=True)
        subprocess.run(step, cwd=repository, env=variables, check=True)
    return variables


@contextmanager
def jupyterlab(folder: Path, repository: Path, variables: dict[str, str]):
    """A running server's address and token."""
    command = [repository / ".binder" / "start", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.port=0", f"--ServerApp.root_dir={repository}"]
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=repository, env=variables, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        note = folder / "runtime" / f"jpserver-{server.pid}.json"
        for _ in range(600):
            if note.exists() or server.poll() is not None:
                break
            time.sleep(0.1)
        if not note.exists():
            sys.exit(f"JupyterLab did not start:\n{(folder / 'server.log').read_text()}")
        found = json.loads(note.read_text())
        yield Server(found["url"], found["token"])
    finally:
        server.terminate()
        server.wait()


class Server:
    """The part of the Jupyter server's API that runs a notebook."""

    def __init__(self, url: str, token: str):
        self.url, self.token = url, token

    def ask(self, method: str, path: str, body: dict | None = None) -> dict:
        request = urllib.request.Request(
            f"{self.url}api/{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
            data=None if body is None else json.dumps(body).encode(),
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "{}")

    async def run(self, path: str) -> int:
        """Run all cells of a notebook; the peak of its kernel's resident memory in MB.

        Raises a RuntimeError that quotes the traceback when a cell fails.
        """
        session = self.ask(
            "POST",
            "sessions",
            {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"}},
        )
        notebook = self.ask("GET", f"contents/{path}?content=1")["content"]
        url = f"{self.url}api/kernels/{session['kernel']['id']}/channels?token={self.token}"
        channel = await websocket_connect(url.replace("http", "ws", 1), max_message_size=2**28)
        try:
            for cell in notebook["cells"]:
                if cell["cell_type"] == "code":
                    await execute(channel, cell["source"])
            reply = await execute(channel, "", {"peak": PEAK})
            return int(reply["user_expressions"]["peak"]["data"]["text/plain"])
        finally:
            channel.close()
            self.ask("DELETE", f"sessions/{session['id']}")


async def execute(channel, code: str, expressions: dict[str, str] | None = None) -> dict:
    """Run one cell and return the kernel's reply to it."""
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "version": "5.3"}
    header |= {"username": "", "session": uuid.uuid4().hex, "date": ""}
    content = {"code": code, "silent": False, "user_expressions": expressions or {}}
    content |= {"store_history": True, "allow_stdin": False, "stop_on_error": True}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
    await channel.write_message(json.dumps(message | {"channel": "shell", "buffers": []}))
    while True:
        text = await channel.read_message()
        answer = json.loads(text or "{}")
        state = answer.get("content", {}).get("execution_state")
        if text is None or state in ("restarting", "dead"):
            raise RuntimeError("the kernel died (out of memory?)")
        is_reply = answer["msg_type"] == "execute_reply"
        if is_reply and answer["parent_header"]["msg_id"] == header["msg_id"]:
            if answer["content"]["status"] != "ok":
                raise RuntimeError("\n".join(answer["content"]["traceback"]))
            return answer["content"]


async def run_all(server: Server, notebooks: list[str]) -> int:
    """One line a notebook; how many of them failed or took too much memory."""
    failed = 0
    print(f"{'chapter':20s} {'peak MB':>8s} {'seconds':>8s}")
    for path in notebooks:
        start = time.monotonic()
        try:
            peak = await server.run(path)
        except RuntimeError as error:
            print(f"{path}: {error}", flush=True)
            failed += 1
            continue
        note = "" if peak <= LIMIT else f"  over the limit of {LIMIT} MB"
        failed += bool(note)
        seconds = time.monotonic() - start
        print(f"{Path(path).stem:20s} {peak:8d} {seconds:8.1f}{note}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", metavar="REQUIREMENT", help="another PyTorch than .binder names")
    parser.add_argument("--folder", type=Path, default=ROOT / "_build" / "binder")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    repository = options.folder / "repository"
    copy_repository(repository)
    if options.torch:
        replace_torch(repository, options.torch)
    variables = install(options.folder, repository)
    chapters = sorted((repository / "chapters").glob("*.ipynb"))
    notebooks = [str(path.relative_to(repository)) for path in chapters]
    with jupyterlab(options.folder, repository, variables) as server:
        return int(asyncio.run(run_all(server, notebooks)) > 0)


if __name__ == "__main__":
    sys.exit(main())
