"""An entry of the glossary leads to a chapter that uses its term."""

import re
from pathlib import Path

import pytest

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"
ENTRY = re.compile(r"^(?P<term>\S.*)\n(?P<text>(?:  .*\n)+)", re.MULTILINE)


def entries() -> dict[str, str]:
    """Term -> what the page says of it."""
    page = (CHAPTERS / "glossary.md").read_text(encoding="utf-8")
    return {m["term"]: m["text"] for m in ENTRY.finditer(page.split("```{glossary}\n")[1])}


def pages_with(label: str) -> list[Path]:
    return [page for page in CHAPTERS.glob("*.md") if f"$$ ({label})" in page.read_text("utf-8")]


@pytest.mark.parametrize("term", entries())
def test_entry_leads_to_a_chapter_that_uses_the_term(term):
    text = entries()[term]
    linked = [CHAPTERS / name for name in re.findall(r"\]\((\w+\.md)\)", text)]
    linked += [page for label in re.findall(r"\{eq\}`(\S+?)`", text) for page in pages_with(label)]
    assert linked, f"{term}: no link to a chapter or an equation"
    words = term.lower().replace("-", " ")
    used = [
        page.name
        for page in linked
        if words in re.sub(r"[\s-]+", " ", page.read_text(encoding="utf-8").lower())
    ]
    assert used, f"{term}: none of {[page.name for page in linked]} uses it"


@pytest.mark.parametrize("term", entries())
def test_entry_is_one_to_three_sentences(term):
    sentences = re.findall(r"[.!?](?:\s|$)", entries()[term])
    assert 1 <= len(sentences) <= 3


def test_entries_stand_in_alphabetical_order():
    terms = list(entries())
    assert terms == sorted(terms, key=str.lower)
    assert 30 <= len(terms) <= 50
