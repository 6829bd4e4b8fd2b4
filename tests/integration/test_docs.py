"""docs/: what they show works, and what they point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recalld.app import Server
from recalld.client import Client
from tests.integration.test_readme import Block, run_python

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "SECURITY.md"])


def blocks(page: str, language: str) -> list[Block]:
    """The code blocks of a page of docs/ in a language."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    return [
        Block(language, text[: match.start(1)].count("\n") + 1, match[1])
        for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def test_the_python_of_the_clients_page_prints_what_it_says(server: Server, client: Client) -> None:
    (block,) = blocks("clients.md", "python")
    run_python(block, server.address, {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_file_that_a_page_links_to_or_names_is_there(page: Path) -> None:
    text = page.read_text("utf-8")
    linked = {page.parent / link for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)}
    named = {ROOT / name for name in re.findall(r"`((?:protos|server|tests|docs)/[\w./-]+)`", text)}
    assert {str(path) for path in linked | named if not path.exists()} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_heading_that_a_page_links_to_is_there(page: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#([\w-]+)\)", page.read_text("utf-8")):
        target = (page.parent / link if link else page).read_text("utf-8")
        headings = {
            re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", target, re.MULTILINE)
        }
        assert anchor in headings | set(re.findall(r'<a (?:id|name)="([\w-]+)"', target)), anchor
