"""The status page in a real browser: it keeps itself up to date, and everyone can use it."""

import shutil
from pathlib import Path

import pytest

from tests.observability.browser import Browser, browser
from tests.observability.stage import KEYS, Stage, stage
from tests.observability.test_status_page import BROWSER, Outline

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed"),
]

SECRET = "correct-horse-battery-staple"
CONTRAST = """
(() => {
  const parts = (text) => text.match(/[0-9.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255)
    .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (one) => {
    for (; one; one = one.parentElement) {
      const color = parts(getComputedStyle(one).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const one = node.parentElement;
    if (!node.data.trim() || ["STYLE", "SCRIPT"].includes(one.tagName) || !one.checkVisibility()) continue;
    const [a, b] = [light(parts(getComputedStyle(one).color)), light(ground(one))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.data.trim()]);
  }
  return found.sort((one, other) => one[0] - other[0]).slice(0, 3).concat([[found.length, "texts"]]);
})()
"""
"""The three texts of least contrast to what is behind them, and how many there are."""
TWENTY_TIMES_FASTER = "{ const real = setTimeout; window.setTimeout = (act, ms) => real(act, ms / 20); }"
ANSWERS_WAIT = """
window.answers = [];
{
  const real = fetch;
  window.fetch = async (...asked) => {
    const answer = await real(...asked);
    const text = (await answer.text()).replace(/As of [^<]*/, "As of another time");
    await new Promise((give) => window.answers.push(give));
    return new Response(text);
  };
}
"""
TOO_WIDE = "document.documentElement.scrollWidth - innerWidth"
FOCUS = "[document.activeElement.tagName, document.activeElement.textContent.trim().slice(0, 40)]"


async def every_view(world: Stage) -> list[str]:
    """The paths of all views, each with something to see."""
    sent = await world.load()
    (held,) = await world.hold(1)
    letters = await world.redis.xrange(KEYS.dead)
    letter = letters[0][1][b"dead_id"].decode()
    messages = [sent[1], held, f"requests:{letter}", "", "1-1"]
    return ["/status", "/status?dead", *(f"/status?id={message}" for message in messages)]


async def test_every_view_is_sound_readable_and_fits_any_screen(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET)
    async with stage({"WORKER_STATUS_TOKEN_FILE": str(token)}) as world, browser(tmp_path) as tab:
        for path in await every_view(world):
            await tab.open(world.stack.http_address + path)
            for scheme in ("light", "dark"):
                await tab.prefers(color_scheme=scheme, reduced_motion="reduce")
                *worst, (number, _) = await tab.run(CONTRAST)
                assert number > 8
                assert worst[0][0] >= 4.5, (path, scheme, worst)
            for width in (1280, 320):
                await tab.size(width, 800)
                assert await tab.run(TOO_WIDE) <= 0, (path, width)
            # The tree the browser made of it is the one that was meant: it repaired nothing.
            meant = Outline((await world.get(path, BROWSER)).text)
            names = "h1, h2, table, caption, th, nav, main, section, form"
            made = await tab.run(f"[...document.querySelectorAll('{names}')].map((one) => one.localName)")
            assert made == [name for name, _ in meant.tags if name in names.split(", ")], path

        assert tab.complaints == []


async def test_dark_looks_other_than_light_and_nothing_moves_for_those_who_do_not_want_it(
    tmp_path: Path,
) -> None:
    async with stage() as world, browser(tmp_path) as tab:
        await tab.prefers(color_scheme="light", reduced_motion="reduce")
        await tab.open(f"{world.stack.http_address}/status")
        light, still = (
            await tab.shot(),
            await tab.run("getComputedStyle(document.links[1]).transitionDuration"),
        )
        await tab.prefers(color_scheme="dark", reduced_motion="no-preference")
        dark, moving = (
            await tab.shot(),
            await tab.run("getComputedStyle(document.links[1]).transitionDuration"),
        )

        assert light != dark
        assert (still, moving.split(",")[0]) == ("0s", "0.12s")


async def test_it_keeps_itself_up_to_date_and_takes_nothing_away(tmp_path: Path) -> None:
    async with stage() as world, browser(tmp_path) as tab:
        (first,) = await world.hold(1)
        await tab.call("Page.addScriptToEvaluateOnNewDocument", source=TWENTY_TIMES_FASTER)
        await tab.open(f"{world.stack.http_address}/status")
        await tab.run("document.getElementById('id').value = 'half an ID'")
        link = f"#flight a[href*='{first}']"
        await tab.run(f'document.querySelector("{link}").focus()')
        await tab.run("window.seen = document.querySelector('#flight tbody tr')")

        (second,) = await world.hold(1)
        await tab.until(f"document.querySelector(\"#flight a[href*='{second}']\") !== null")

        # It was put in anew, and yet the focus is on the same link, and what was typed is still there.
        assert await tab.run("window.seen.isConnected") is False
        assert (
            await tab.run("document.activeElement.getAttribute('href')") == f"/status?id=requests%3A{first}"
        )
        assert await tab.run("document.getElementById('id').value") == "half an ID"
        assert await tab.run("document.getElementById('stale').hidden") is True

        await it_can_be_paused(tab)
        await world.worker_ends()
        await tab.run("document.getElementById('pause').click()")
        await tab.until("!document.getElementById('stale').hidden")
        assert second in await tab.run("document.body.innerText")


async def it_can_be_paused(tab: Browser) -> None:
    await tab.run(ANSWERS_WAIT)
    await tab.until("window.answers.length > 0")
    await tab.run("document.getElementById('pause').click()")
    before = await tab.run("document.getElementById('now').textContent")
    assert await tab.run("document.getElementById('pause').getAttribute('aria-pressed')") == "true"
    # The answer to what was asked before the pause comes after it, and says another time.
    await tab.run("window.answers.forEach((give) => give())")
    # Longer than the page waits between two looks, by its own clock.
    await tab.run("new Promise((done) => setTimeout(done, 15000))")
    assert await tab.run("document.getElementById('now').textContent") == before


async def test_it_works_without_scripts(tmp_path: Path) -> None:
    async with stage() as world, browser(tmp_path) as tab:
        (held,) = await world.hold(1)
        await tab.scripts(on=False)
        await tab.open(f"{world.stack.http_address}/status")
        seen = await tab.run("document.body.innerText")
        hidden = await tab.run("document.getElementById('pause').hidden")
        tab.expect_load()
        await tab.run(
            f"document.getElementById('id').value = '{held}';"
            "document.querySelector('[role=search] button').click()"
        )
        await tab.loaded()

        assert held in seen
        assert hidden is True
        assert f"Message requests:{held}" in await tab.run("document.body.innerText")


async def test_it_can_be_used_by_keyboard_alone(tmp_path: Path) -> None:
    async with stage() as world, browser(tmp_path) as tab:
        await world.hold(1)
        await tab.open(f"{world.stack.http_address}/status")
        reached = []
        for _ in range(9):
            await tab.press("Tab")
            reached.append(await tab.run(FOCUS))
        outlined = await tab.run("getComputedStyle(document.activeElement).outlineStyle")

        assert [name for name, _ in reached[:5]] == ["A", "INPUT", "BUTTON", "A", "A"]
        assert reached[0][1] == "To the content"
        assert [text for _, text in reached[2:6]] == ["Find", "Overview", "Dead letters", "Pause"]
        # What scrolls can be reached too.
        assert "DIV" in [name for name, _ in reached]
        assert outlined == "solid"
        await tab.run("document.querySelector('.skip').focus()")
        await tab.press("Enter")
        assert (await tab.run(FOCUS))[0] == "MAIN"


async def test_a_person_with_the_token_cancels_a_job(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{SECRET}\n")
    async with stage({"WORKER_STATUS_TOKEN_FILE": str(token)}) as world, browser(tmp_path) as tab:
        (held,) = await world.hold(1)
        await tab.open(f"{world.stack.http_address}/status?id={held}")
        await tab.run("document.querySelector('[name=token]').focus()")
        await tab.call("Input.insertText", text=SECRET)
        tab.expect_load()
        await tab.press("Enter")
        await tab.loaded()

        text = await tab.run("document.querySelector('[role=alert]:not([hidden])').innerText")
        assert "Its job is being stopped" in text
        assert await tab.run("location.search") == f"?id=requests%3A{held}&told=ordered"
        await tab.until("document.body.innerText.includes('cancelled')")
        assert tab.complaints == []
