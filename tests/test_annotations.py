"""The shapes in vaelib's signatures are true, checked by jaxtyping and beartype."""

import subprocess
import sys
from pathlib import Path


def test_every_public_function_keeps_to_its_annotations():
    script = Path(__file__).with_name("annotations_run.py")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
