"""The page in a real browser, headless: what its policy keeps from running, and what it lets be shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.pipeline.report.conftest import Bench

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
# What a text would be if it got past the escaping. Each writes RAN into the page where it can.
RAN = "document.documentElement.setAttribute('data-ran', 'yes')"
INJECTED = (
    f"<script>{RAN}</script>",
    f'<img src="nowhere" onerror="{RAN}">',
    f'<svg onload="{RAN}"></svg>',
    f'<iframe srcdoc="&lt;script&gt;parent.{RAN}&lt;/script&gt;"></iframe>',
    f'<details open ontoggle="{RAN}"></details>',
    f'<style onload="{RAN}"></style>',
    f'<base href="https://host/"><script src="data:text/javascript,{RAN}"></script>',
    f'<meta http-equiv="refresh" content="0; url=javascript:{RAN}">',
)
HOSTILE = f"</title></style>{INJECTED[0]}{INJECTED[1]}\"'>{INJECTED[2]}"


@pytest.fixture(scope="module")
def browser() -> str:
    found = os.environ.get("UNLEARN_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    return found or pytest.skip("no Chromium on PATH, and UNLEARN_CHROMIUM names none")


def look(browser: str, page: Path, *arguments: str) -> str:
    """What the browser prints of a page: with ``--dump-dom`` its elements after it was loaded."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,3000"]
    options.append(f"--user-data-dir={page.parent / 'profile'}")
    command = [browser, *options, *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def ran(shown: str) -> bool:
    """Whether one of the injected texts was run."""
    element = re.search(r"<html[^>]*>", shown)
    assert element is not None
    return "data-ran" in element[0]


@pytest.mark.slow
def test_hostile_rows_run_nothing_and_what_gets_past_the_escaping_does_not_either(
    browser: str, bench: Bench, tmp_path: Path
) -> None:
    """Only this runs a page. Its second half takes the escaping away, then the policy, to show that either holds."""
    bench.spec |= {"experiment": HOSTILE, "model": HOSTILE, "config": {HOSTILE: HOSTILE}}
    bench.add("npo", title=HOSTILE, flags=(HOSTILE,), reasons=(HOSTILE,))
    page = bench.write() / "index.html"
    shown = look(browser, page, "--dump-dom")
    assert not ran(shown) and "Resolved configuration" in shown
    text = page.read_text(encoding="utf-8")
    assert len(POLICY.findall(text)) == 1
    for number, injected in enumerate(INJECTED):
        broken = tmp_path / f"{number}.html"
        broken.write_text(text.replace("<main>", f"<main>{injected}", 1), encoding="utf-8")
        assert not ran(look(browser, broken, "--dump-dom")), injected
    broken.write_text(POLICY.sub("", text).replace("<main>", f"<main>{INJECTED[0]}", 1), encoding="utf-8")
    assert ran(look(browser, broken, "--dump-dom"))


@pytest.mark.slow
def test_the_script_that_searches_is_the_only_one_that_runs(browser: str, said: Bench, tmp_path: Path) -> None:
    """Only this runs the script under its policy, beside everything that could get past the escaping; and a changed
    one, which does not run: the field stays away, and the rows are there."""
    page = said.write() / "examples" / "01-forget-1.html"
    injected = "".join([*INJECTED[:-1], f'<iframe src="javascript:parent.{RAN}"></iframe>'])
    text = page.read_text(encoding="utf-8").replace("<main>", f"<main>{injected}", 1)
    own = re.search(r"<script>\n?\"use strict\".*?</script>", text, re.DOTALL)
    assert own is not None
    shown = {}
    for name, script in {"own": own[0], "changed": own[0].replace("() =>", f"() => {RAN} ||", 1)}.items():
        (tmp_path / f"{name}.html").write_text(text.replace(own[0], script), encoding="utf-8")
        shown[name] = look(browser, tmp_path / f"{name}.html", "--dump-dom")
        assert not ran(shown[name]) and shown[name].count("<article") == 3
    assert '<p id="searching">' in shown["own"] and "3 of 3 rows" in shown["own"]
    assert '<p id="searching" hidden="">' in shown["changed"]


@pytest.mark.slow
def test_the_policy_changes_nothing_that_is_shown(browser: str, bench: Bench, tmp_path: Path) -> None:
    """Only this looks at the page: to the pixel as without its policy, and not as without its styles."""
    bench.add("npo")
    text = (bench.write() / "index.html").read_text(encoding="utf-8")
    pictures = {}
    for name, changed in {
        "as it is": text,
        "no policy": POLICY.sub("", text),
        "no styles": text.replace("style-src 'unsafe-inline'", "style-src 'none'"),
    }.items():
        page, picture = tmp_path / "page.html", tmp_path / f"{name}.png"
        page.write_text(changed, encoding="utf-8")
        look(browser, page, f"--screenshot={picture}")
        pictures[name] = picture.read_bytes()
    assert pictures["as it is"] == pictures["no policy"] != pictures["no styles"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "model", "order", "words", "left"),
    [
        ("holds", "any", "ranked", "", [2]),
        ("lost", "m2", "data", "", [0, 1]),
        ("lost", "any", "changes", "ada ROME", [0]),
    ],
)
def test_buttons_and_the_search_leave_the_rows_that_they_should(
    browser: str, said: Bench, tmp_path: Path, what: str, model: str, order: str, words: str, left: list[int]
) -> None:
    """Only this presses the buttons and searches; to see what is shown and where, it takes the policy away and adds a
    script. Where nothing is searched for, the page's own script is taken away: buttons need none."""
    text = POLICY.sub("", (said.write() / "examples" / "01-forget-1.html").read_text(encoding="utf-8"))
    if not words:
        text = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    shown = "[...document.querySelectorAll('article')].filter(one => one.offsetParent)"
    shown += ".sort((one, other) => one.offsetTop - other.offsetTop).map(one => one.style.getPropertyValue('--data'))"
    pressed = "".join(f"document.getElementById('{name}').checked = true;" for name in (what, model, order))
    pressed += f"search.value = '{words}'; search.dispatchEvent(new Event('input'));"
    script = f"<script>{pressed} document.title = 'left ' + {shown}</script></body>"
    (tmp_path / "page.html").write_text(text.replace("</body>", script), encoding="utf-8")
    title = f"<title>left {','.join(map(str, left))}</title>"
    assert title in look(browser, tmp_path / "page.html", "--dump-dom").replace(" ,", ",")
