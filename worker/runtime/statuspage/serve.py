"""Answers a browser's request for the status page.

Decides which view is meant, by the query; the views are made in `view` and rendered in `page` and `story`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from worker.runtime.statuspage.actions import Actions, Order
from worker.runtime.statuspage.page import dead_letters, overview
from worker.runtime.statuspage.story import found
from worker.runtime.statuspage.view import Viewer


@dataclass(frozen=True, slots=True)
class Answer:
    """What the browser gets: a page, or where to go on to."""

    status: int
    html: str = ""
    location: str = ""


class StatusPage:
    """The page of one worker."""

    def __init__(self, viewer: Viewer, actions: Actions) -> None:
        self._viewer = viewer
        self._actions = actions

    async def show(self, query: Mapping[str, str]) -> str:
        """The page for a query: `id` searches for a message, `dead` lists dead letters."""
        if "id" in query:
            view = await self._viewer.find(query["id"])
            return found(replace(view, may_act=self._actions.enabled, told=query.get("told", "")))
        if "dead" in query:
            return dead_letters(await self._viewer.dead())
        return overview(await self._viewer.overview())

    async def order(self, order: Order) -> Answer:
        """Carry out an action and lead to the message it was about; reloading then does not repeat it."""
        done = await self._actions.carry_out(order)
        if done.told is not None:
            query = {"id": str(done.key)} if done.key else {"dead": ""}
            return Answer(303, location=f"/status?{urlencode({**query, 'told': done.told.value})}")
        view = await self._viewer.find(str(done.key) if done.key else "")
        page = found(replace(view, may_act=self._actions.enabled, refused=done.refused))
        return Answer(done.status, page)
