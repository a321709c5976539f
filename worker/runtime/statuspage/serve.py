"""Answers a browser's request for the status page.

Decides which of the two views is meant, by the query; the views are made in `view` and rendered in `page`.
"""

from collections.abc import Mapping

from worker.runtime.statuspage.page import overview
from worker.runtime.statuspage.story import found
from worker.runtime.statuspage.view import Viewer


class StatusPage:
    """The page of one worker."""

    def __init__(self, viewer: Viewer) -> None:
        self._viewer = viewer

    async def html(self, query: Mapping[str, str]) -> str:
        """The page for a query: `id` searches for a message, `pause` stops the overview's reloading."""
        if "id" in query:
            return found(await self._viewer.find(query["id"]))
        return overview(await self._viewer.overview(), paused="pause" in query)
