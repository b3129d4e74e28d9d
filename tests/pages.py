"""What tests of pages ask of their HTML, read as text or shown by a browser."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

SCRIPT = "<script>alert(1)</script>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


@dataclass
class Seen(HTMLParser):
    """The elements and the text of a page, and whether its tags match."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)
    """Of drawings."""

    def __post_init__(self):
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-2:] == ["svg", "title"]:
            self.titles.append(data)
        self.text.append(data)

    @classmethod
    def page(cls, text: str) -> "Seen":
        seen = cls()
        seen.feed(text)
        seen.close()
        assert not seen.open
        return seen


def check_self_contained(text: str, *, min_figures: int) -> None:
    """Tags match, nothing refers to anything outside, and every figure is described in words and numbers."""
    seen = Seen.page(text)
    assert not {tag for tag, _ in seen.tags} & {"script", "link", "iframe", "object", "base", "b", "i", "u"}
    for tag, attributes in seen.tags:
        for key in ("href", "src", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/")), (tag, attributes)
        assert not any(key.startswith("on") for key in attributes)
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg" and attributes.get("aria-hidden") != "true":
            assert attributes["role"] == "img" and re.search(r"\d", attributes["aria-label"] or "")
    drawn = [tag for tag, attributes in seen.tags if tag == "svg" and "role" in attributes]
    assert len(seen.titles) == len(drawn) >= min_figures
    assert not re.search(r"url\((?!#)|@import|https?:", re.sub(r'aria-label="[^"]*"|<title>.*?</title>', "", text))
    assert "#0404" not in text and "font-family" not in text and len(text.encode()) < 1_000_000
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids)) and set(re.findall(r'(?:href="|url\()#([\w-]+)', text)) <= set(ids)


# Once all that the page asks for has come or failed: before, what it asked for may not be known.
MEASURE = """<script>
addEventListener('load', () => {
  for (const closed of document.querySelectorAll('details')) closed.open = true;
  const wide = [...document.querySelectorAll('body *')].filter(e => {
    const box = e.getBoundingClientRect();
    return !e.closest('.scroll, pre') && box.width && (box.right > innerWidth + 1 || box.left < -1);
  }).map(e => e.tagName);
  const cut = [...document.querySelectorAll('figure > svg')].filter(s => {
    const frame = s.getBoundingClientRect();
    return [...s.querySelectorAll('text')].some(t => {
      const box = t.getBoundingClientRect();
      return box.right > frame.right + 4 || box.left < frame.left - 4 || box.bottom > frame.bottom + 3;
    });
  }).map(s => s.getAttribute('aria-label').slice(0, 60));
  const small = [...document.querySelectorAll('figure > svg text')].filter(t => t.getBoundingClientRect().height < 6);
  const asked = performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'));
  document.title = JSON.stringify({width: document.documentElement.scrollWidth, inner: innerWidth, wide, cut,
    small: small.length, asked});
});
</script>"""


def measured(page: str, width: int, folder: Path) -> dict:
    """What a browser says of a page in a frame of this width; nothing is asked of a network."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("chromium is not installed: what a browser shows was not tested")
    (folder / "page.html").write_text(page.replace("</body>", MEASURE + "</body>"))
    # A window of chromium's is at least 500 pixels wide, a frame is not.
    frame = folder / "frame.html"
    frame.write_text(
        "<!doctype html><title>-</title><script>onload = () => { "
        "document.title = document.querySelector('iframe').contentDocument.title }</script>"
        f'<iframe src="page.html" style="width:{width}px;height:3000px;border:0"></iframe>'
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    flags += ["--disable-component-update", "--allow-file-access-from-files", f"--user-data-dir={folder / 'user'}"]
    # The browser has requests of its own; they go nowhere.
    flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=3000", "--window-size=1400,3000"]
    done = subprocess.run([chromium, *flags, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert found, done.stderr
    return json.loads(unescape(found[1]))


def check_in_browser(page: str, width: int, folder: Path) -> None:
    """Nothing is wider than the page, cut off or too small to read, and nothing is asked for."""
    found = measured(page, width, folder)
    assert found.pop("inner") == width and found.pop("width") <= width
    assert found == dict(wide=[], cut=[], small=0, asked=[]), found
