"""The pages as built, without executing tutorials: what they load, and how formulas are set."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
LOADED = re.compile(r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)=\"([^\"]*)\"")
IN_STYLES = re.compile(r"url\([\"']?([^)\"']+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = ["mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    environment = os.environ | {"DOCS_FAST": "1"}
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, check=True)
    return out


@pytest.mark.slow
def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    pages, styles = ([*site.rglob(ending)] for ending in ("*.html", "*.css"))
    loaded = {
        target
        for files, pattern in ((pages, LOADED), (styles, IN_STYLES))
        for file in files
        for target in pattern.findall(file.read_text(encoding="utf-8"))
    }
    assert any(target.endswith("katex.min.js") for target in loaded)
    assert [target for target in loaded if re.match(r"(\w+:)?//", target)] == []


@pytest.mark.browser
def test_every_formula_is_set(browser: Any, site: Path) -> None:
    pages = [page for page in site.rglob("index.html") if 'class="arithmatex"' in page.read_text()]
    context, asked = browser.new_context(), []
    window = context.new_page()
    window.on("request", lambda request: asked.append(request.url))
    for page in pages:
        window.goto(page.as_uri())
        formulas = window.locator(".arithmatex").count()
        assert window.locator(".arithmatex .katex-html").count() == formulas > 0, page
        assert window.locator(".katex-error").count() == 0, page
    context.close()
    assert len(pages) > 22
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
