"""Title, description and picture for a link to a page that someone shares: Open Graph tags.

Addresses must be absolute there, so they are written only where _config.yml names a repository on
GitHub, whose Pages this book is published on.
"""

import re

REPOSITORY = re.compile(r"https://github\.com/(?P<owner>[\w.-]+)/(?P<name>[\w.-]+?)(\.git)?/?")
ADDRESSED = ("og:url", "og:image")


def site_address(repository: str) -> str:
    """The address of a repository's GitHub Pages; empty where there is none."""
    match = REPOSITORY.fullmatch(repository)
    return f"https://{match['owner'].lower()}.github.io/{match['name']}/" if match else ""


def set_address(app, config):
    address = site_address(config.html_theme_options.get("repository_url") or "")
    config.ogp_site_url = config.html_baseurl = address


def drop_relative_addresses(app, pagename, templatename, context, doctree):
    if not app.config.ogp_site_url:
        lines = context.get("metatags", "").splitlines()
        kept = [line for line in lines if not any(f'"{tag}' in line for tag in ADDRESSED)]
        context["metatags"] = "\n".join(kept)


def setup(app):
    app.setup_extension("sphinxext.opengraph")
    app.connect("config-inited", set_address)
    app.connect("html-page-context", drop_relative_addresses, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
