"""Execute the chapters that the cache lacks side by side, before Sphinx reads them.

Sphinx would take them one after another, and most of a chapter keeps one core busy. A chapter that
fails here fails again, and is reported, when its page is read.
"""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jupyter_cache import get_cache
from myst_nb.core.execute import create_client
from myst_nb.core.read import create_nb_reader

CORES = os.cpu_count() or 1
WORKERS = min(4, CORES)  # a chapter may take 1.2 GiB of memory
quiet = logging.getLogger("execute_ahead")
quiet.addHandler(logging.NullHandler())
quiet.propagate = False


def execute_ahead(app, env, docnames):
    """Fill the cache, with the cores shared out among the chapters."""
    get_cache(env.mystnb_config.execution_cache_path).list_cache_records()  # makes the database
    os.environ.setdefault("OMP_NUM_THREADS", str(CORES // WORKERS))
    with ThreadPoolExecutor(WORKERS) as pool:
        for docname in docnames:
            pool.submit(execute, env, Path(env.doc2path(docname)))


def execute(env, path: Path):
    """Run one page into the cache, unless it is there; a page without code is left alone."""
    content = path.read_text(encoding="utf-8")
    reader = create_nb_reader(str(path), env.myst_config, env.mystnb_config, content)
    if reader is not None:
        with create_client(
            reader.read(content), str(path), env.mystnb_config, quiet, reader.read_fmt
        ):
            pass


def setup(app):
    app.connect("env-before-read-docs", execute_ahead)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
