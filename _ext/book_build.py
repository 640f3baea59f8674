"""What the build needs beyond Jupyter Book, each for one reason."""

import hashlib
import importlib.util
import shutil
from importlib.metadata import version
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.util import logging

logger = logging.getLogger(__name__)
MATHJAX_PARTS = (  # of the 24 MB in the package, what a page can ask for
    "tex-chtml.js",
    "input/tex/extensions",
    "output/chtml/fonts",
    "a11y",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
)


def package_folder(name: str) -> Path:
    return Path(importlib.util.find_spec(name).origin).parent


def data_in_force() -> str:
    from vaelib.data import load_images

    return load_images().name


def key_the_cache(app, config):
    """Execute anew when vaelib, torch, data, results or explorers change, not only the cells."""
    name = data_in_force()
    key = hashlib.sha256(f"{version('torch')} {name}".encode())
    results = Path(app.srcdir).glob("benchmarks/results/*")
    templates = Path(app.srcdir).glob("chapters/*.html")
    package = package_folder("vaelib").glob("*.py")
    for source in [*sorted(package), *sorted(results), *sorted(templates)]:
        key.update(source.read_bytes())
    folder = Path(app.outdir).parent / ".jupyter_cache" / key.hexdigest()[:12]
    config.nb_execution_cache_path = str(folder)
    words = {"mnist": "MNIST", "digits": "the offline digits of scikit-learn (not MNIST)"}
    built_with = f"Built with {words[name]} and PyTorch {version('torch').split('+')[0]}."
    config.html_theme_options["extra_footer"] = (
        f"<p>{built_with} {config.html_theme_options.get('extra_footer', '')}</p>"
    )


def show_only_live_buttons(app, config):
    """Buttons that need the repository's address appear only where _config.yml names one."""
    options = config.html_theme_options
    if options.get("repository_url"):
        options.update(use_repository_button=True, use_issues_button=True)
    else:
        options["launch_buttons"] = {}


def warn_of_missing_alt(app, doctree):
    """A figure without a text alternative is a warning, and so fails the build."""
    for image in doctree.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning("image without alt text: %s", image["uri"], location=image)


def escape_shapes(app, what, name, thing, options, lines):
    """A shape such as [*, L] in a docstring is no emphasis."""
    lines[:] = [line.replace("[*", "[\\*") for line in lines]


def offer_notebook(app, pagename, templatename, context, doctree):
    """The download button gives the paired notebook; a page without one cannot be launched."""
    pair = Path(app.srcdir) / f"{pagename}.ipynb"
    if not pair.exists():
        app.env.metadata.get(pagename, {}).pop("kernelspec", None)
    else:
        context["ipynb_source"] = f"{pagename}.ipynb"


def copy_notebook(app, pagename, templatename, context, doctree):
    """Put the pair where the download button looks; the theme leaves a copy of its own there."""
    pair = Path(app.srcdir) / f"{pagename}.ipynb"
    if pair.exists():
        copy = Path(app.outdir) / "_sources" / f"{pagename}.ipynb"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pair, copy)


def drop_thebe(app, pagename, templatename, context, doctree):
    """Jupyter Book names a CDN on every page for live cells, which this book does not use."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in f"{script.filename} {getattr(script, 'attributes', '')}".lower()
    ]


def copy_mathjax(app, error):
    """Formulas without a network: the files of the PyPI package sphinx-mathjax-offline."""
    if error is None and app.builder.format == "html":
        source = package_folder("sphinx-mathjax-offline") / "static" / "mathjax"
        target = Path(app.outdir) / "_static" / "mathjax"
        for part in MATHJAX_PARTS:
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            if (source / part).is_dir():
                shutil.copytree(source / part, target / part, dirs_exist_ok=True)
            else:
                shutil.copyfile(source / part, target / part)


def use_templates(app, config):
    """_templates/ holds the theme's parts that break rules of accessibility."""
    config.templates_path = [*config.templates_path, str(Path(__file__).parents[1] / "_templates")]


def visit_entry(self, node):
    """An empty cell in a table's head is no header that a screen reader could name."""
    type(self).visit_entry(self, node)
    if not node.astext() and not any(node.findall(nodes.image)):
        self.body[-1] = self.body[-1].replace("<th", "<td", 1)
        self.context[-1] = self.context[-1].replace("</th", "</td")


def depart_entry(self, node):
    type(self).depart_entry(self, node)


def visit_citation(self, node):
    """Without the role that docutils gives, doc-biblioentry: ARIA 1.2 has deprecated it."""
    self.body.append(self.starttag(node, "div", classes=["citation"]))


def depart_citation(self, node):
    self.body.append("</div>\n")


def visit_parameters(self, node):
    node["start"] = len(self.body)
    type(self).visit_desc_parameterlist(self, node)


def depart_parameters(self, node):
    """Sphinx lists long signatures in a <dl> without terms, which is no valid list."""
    type(self).depart_desc_parameterlist(self, node)
    for i in range(node["start"], len(self.body)):
        for tag in ("dl", "dd"):
            self.body[i] = self.body[i].replace(f"<{tag}>", f'<div class="sig-{tag}">')
            self.body[i] = self.body[i].replace(f"</{tag}>", "</div>")


def setup(app):
    app.config.mathjax_path = "mathjax/tex-chtml.js"
    app.connect("config-inited", key_the_cache)
    app.connect("config-inited", show_only_live_buttons)
    app.connect("config-inited", use_templates)
    app.add_node(nodes.entry, override=True, html=(visit_entry, depart_entry))
    parameters = (visit_parameters, depart_parameters)
    app.add_node(addnodes.desc_parameterlist, override=True, html=parameters)
    app.add_node(nodes.citation, override=True, html=(visit_citation, depart_citation))
    app.connect("doctree-read", warn_of_missing_alt)
    app.connect("autodoc-process-docstring", escape_shapes)
    app.connect("html-page-context", offer_notebook, priority=400)
    app.connect("html-page-context", copy_notebook, priority=600)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
