"""No pickle, no shell, no code made from text, no address but the mirrors', read from the sources.

The rules hold for vaelib, _ext, benchmarks, .ci and the code cells of the chapters. A name is followed
through the imports of its file: ``from pickle import loads as read`` hides nothing.
"""

import ast
import runpy
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("vaelib", "_ext", "benchmarks", ".ci")
SOURCES = [file for folder in FOLDERS for file in sorted((ROOT / folder).glob("*.py"))]
CHAPTERS = [p for p in sorted((ROOT / "chapters").glob("*.md")) if "{code-cell}" in p.read_text()]

NEVER_IMPORTED = {"cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal"}
HARMLESS_PICKLE = {"pickle.UnpicklingError", "pickle.PicklingError"}  # torch.load raises them
NEVER_CALLED = {
    "eval", "exec", "compile", "__import__",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "joblib.load", "torch.hub.load", "torch.hub.load_state_dict_from_url",
    "torch.jit.load", "tempfile.mktemp", "ssl._create_unverified_context",
    "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
}  # fmt: skip
NETWORK = ("urllib.request.urlopen", "urllib.request.urlretrieve", "urllib.request.build_opener",
           "http.client.HTTP", "socket.create_connection", "socket.socket", "requests.", "httpx.",
           "aiohttp.", "sklearn.datasets.fetch_")  # fmt: skip
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader"}


def names_in(tree: ast.AST) -> dict[str, str]:
    """What each imported name stands for: {"np": "numpy", "run": "subprocess.run"}."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    """"numpy.load" for ``np.load``; what is no dotted name comes back as it is written."""
    if isinstance(node, ast.Attribute):
        return f"{full_name(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ast.unparse(node)


def is_constant(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def dangers(source: str) -> list[str]:
    """One line for each import or use of what could execute data, or a shell."""
    tree = ast.parse(source)
    names = names_in(tree)
    parts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = []
    for node in ast.walk(tree):
        here = f"line {getattr(node, 'lineno', 0)}: "
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names]
            modules = modules if isinstance(node, ast.Import) else [node.module or ""]
            found += [here + m for m in modules if m.split(".")[0] in NEVER_IMPORTED]
        elif isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in parts:
            name = full_name(node, names)  # also where it is only handed on
            pickles = name.split(".")[0] == "pickle" and name not in HARMLESS_PICKLE
            if name in NEVER_CALLED or pickles:
                found.append(here + name)
        elif isinstance(node, ast.Call):
            found += [here + danger for danger in dangers_of_call(node, names)]
    return found


def dangers_of_call(node: ast.Call, names: dict[str, str]) -> list[str]:
    """What a call of a function that is safe with some arguments does with others."""
    name = full_name(node.func, names)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    found = []
    if name == "torch.load" and not is_constant(given.get("weights_only"), True):
        found.append("torch.load without weights_only=True")
    if name == "numpy.load" and not is_constant(
        given.get("allow_pickle", ast.Constant(False)), False
    ):
        found.append("numpy.load with allow_pickle")
    if name in ("yaml.load", "yaml.load_all"):
        loader = given.get("Loader", node.args[1] if len(node.args) > 1 else None)
        if loader is None or full_name(loader, names) not in SAFE_LOADERS:
            found.append(f"{name} without a safe loader")
    if not is_constant(given.get("shell", ast.Constant(False)), False):
        found.append(f"{name} with shell")
    if is_constant(given.get("verify"), False):
        found.append(f"{name} without verification")
    return found


def network_calls(source: str) -> list[str]:
    tree = ast.parse(source)
    names = names_in(tree)
    calls = (full_name(node.func, names) for node in ast.walk(tree) if isinstance(node, ast.Call))
    downloads = (
        ast.unparse(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "download" and not is_constant(keyword.value, False)
    )
    return [*(call for call in calls if call.startswith(NETWORK)), *downloads]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_source_executes_data_or_a_shell(file):
    assert dangers(file.read_text("utf-8")) == []


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_no_chapter_executes_data_or_a_shell_or_asks_the_network(page):
    code = "\n".join(c.source for c in jupytext.read(page).cells if c.cell_type == "code")
    assert dangers(code) == [] and network_calls(code) == []


def test_one_function_alone_asks_the_network():
    asking = {
        str(file.relative_to(ROOT)): calls
        for file in SOURCES
        if (calls := network_calls(file.read_text("utf-8")))
    }
    assert asking == {"vaelib/data.py": ["urllib.request.urlopen"]}


DANGEROUS = [
    "import pickle\npickle.load(file)",
    "import pickle as p\nread(p)",
    "from pickle import loads as read\nread(text)",
    "from pickle import Unpickler\nclass Mine(Unpickler): pass",
    "import os.path, dill",
    "import torch\ntorch.load('x')",
    "import torch as t\nt.load('x', weights_only=False)",
    "from torch import load\nload('x', weights_only=flag)",
    "import numpy as np\nnp.load('x', allow_pickle=True)",
    "import yaml\nyaml.load(text)",
    "import yaml\nyaml.load(text, yaml.UnsafeLoader)",
    "from yaml import load, Loader\nload(text, Loader=Loader)",
    "import yaml\nyaml.unsafe_load(text)",
    "eval(text)",
    "run = exec",
    "list(map(eval, texts))",
    "import os\nos.system('ls')",
    "from os import system as s\ns('ls')",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "import subprocess as sp\nsp.Popen(cmd, shell=flag)",
    "from subprocess import getoutput\ngetoutput('ls')",
    "session.get(url, verify=False)",
    "import tempfile\ntempfile.mktemp()",
    "import torch\ntorch.hub.load('a', 'b')",
]
HARMLESS = [
    "model.eval()",
    "import torch\ntorch.load('x', weights_only=True)",
    "import torch\ntorch.compile(step)",
    "import re\nre.compile('x')",
    "import numpy as np\nnp.load('x')",
    "import yaml\nyaml.safe_load(text)",
    "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
    "import subprocess\nsubprocess.run(['ls'])",
    "import json\njson.load(file)",
    "fit(model, compile=True)",
    "import pickle\ntry:\n    pass\nexcept pickle.UnpicklingError:\n    pass",
]


@pytest.mark.parametrize("source", DANGEROUS)
def test_the_check_finds_what_is_dangerous(source):
    assert dangers(source)


@pytest.mark.parametrize("source", HARMLESS)
def test_the_check_lets_the_harmless_pass(source):
    assert dangers(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "from urllib.request import urlopen as ask\nask(url)",
        "import requests\nrequests.get(url)",
        "from sklearn.datasets import fetch_openml\nfetch_openml('mnist_784')",
        "import torchvision\ntorchvision.datasets.MNIST(root, download=True)",
        "import socket\nsocket.create_connection(address)",
    ],
)
def test_the_check_finds_what_asks_the_network(source):
    assert network_calls(source)


SOUND = {"name": "sound", "version": "1.0", "vulns": []}
WEAK = {"name": "weak", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "unknown", "skip_reason": "not found"}


@pytest.mark.parametrize(
    "packages, status, said",
    [
        ([SOUND, SOUND], 0, "2 packages audited, 0 weaknesses"),
        ([SOUND, WEAK], 1, "weak 1.0: PYSEC-1, mended in 1.1"),
        ([SOUND, UNKNOWN], 2, "out of reach"),
        ([WEAK, UNKNOWN], 2, "PYSEC-1"),
    ],
)
def test_an_audit_that_could_not_ask_is_no_clean_bill(packages, status, said):
    verdict = runpy.run_path(str(ROOT / ".ci" / "audit.py"))["verdict"]
    found, lines = verdict({"dependencies": packages})
    assert found == status and said in "\n".join(lines)
