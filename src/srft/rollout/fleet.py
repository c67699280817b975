"""Several servers as one: requests go where there is room, and away from what fails.

Nothing is lost or counted twice: a request belongs to the waiting ones, to exactly one server, or to
the answers. When a server fails, everything it had in hand goes back to the waiting ones and its
connections are closed, so that a late answer has nowhere to arrive. Since a completion depends on
its seed alone, it comes out the same elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from srft.errors import RolloutError
from srft.rollout.client import Answer, Server, ServerFailure, connection_settings
from srft.rollout.rollout_config import ServerConfig

logger = logging.getLogger(__name__)

Revive = Callable[[Server], None]
"""Brings the right weights onto a server that answers again; ServerFailure where it cannot."""


@dataclass
class Job:
    """One completion to fetch: of which request, which sample, and what is posted for it."""

    request: int
    sample: int
    body: dict[str, Any]
    tries: int = 0


def fetch(
    servers: Sequence[Server],
    jobs: Sequence[Job],
    version: str,
    revive: Revive,
    config: ServerConfig,
) -> Generator[tuple[Job, Answer], None, None]:
    """Every job with its answer, as they come. The caller's thread gets them from a queue; all
    network traffic is in a thread of its own. Close the iterator to give up the rest.

    Raises:
        RolloutError: a request was refused, or failed ``config.attempts`` times, or no server has
            been up for ``config.wait_s`` seconds.
    """
    call = _Call(servers, jobs, version, revive, config)
    thread = threading.Thread(target=call.run, name="srft-servers", daemon=True)
    thread.start()
    try:
        for _ in jobs:
            found = call.answers.get()
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        call.stop()
        thread.join()


class _Call:
    def __init__(
        self,
        servers: Sequence[Server],
        jobs: Sequence[Job],
        version: str,
        revive: Revive,
        config: ServerConfig,
    ) -> None:
        self.servers, self.version, self.revive, self.config = servers, version, revive, config
        self.waiting = deque(jobs)
        self.answers: queue.SimpleQueue[tuple[Job, Answer] | BaseException] = queue.SimpleQueue()
        self.loop = asyncio.new_event_loop()
        self.none_since: float | None = None

    # -- the two threads -----------------------------------------------------------------------

    def run(self) -> None:
        """The network's thread: until ``stop`` is called or something fails for good."""
        try:
            asyncio.set_event_loop(self.loop)
            self.task = self.loop.create_task(self._all())
            self.loop.run_until_complete(self.task)
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self.answers.put(error)
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    def stop(self) -> None:
        """Called by the consumer, whatever happened."""
        with contextlib.suppress(RuntimeError):  # the loop may have ended by itself
            self.loop.call_soon_threadsafe(lambda: self.task.cancel())

    # -- in the network's thread ---------------------------------------------------------------

    async def _all(self) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx2.Timeout(None, connect=self.config.connect_timeout_s)
        self.returned = asyncio.Event()
        settings = {"limits": limits, "timeout": timeout, **connection_settings()}
        async with httpx2.AsyncClient(**settings) as self.http:
            tasks = [asyncio.create_task(self._serve(server)) for server in self.servers]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, server: Server) -> None:
        """One server's life during the call."""
        while True:
            if not server.up:
                await self._until_up(server)
            try:
                await self._work(server)
            except ServerFailure as failure:
                server.up, server.reason = False, str(failure)
                logger.warning("%s is dropped: %s", server.url, failure)
                await asyncio.sleep(self.config.check_every_s)

    async def _work(self, server: Server) -> None:
        """Keeps the server busy; ends only by failing or being cancelled."""
        flying: dict[asyncio.Task[Answer], Job] = {}
        try:
            while True:
                while self.waiting and len(flying) < self.config.in_flight:
                    job = self._next()
                    asked = server.ask(self.http, job.body, self.version)
                    flying[asyncio.create_task(asked)] = job
                    await asyncio.sleep(0)  # let the other servers have their share
                self.returned.clear()
                news = asyncio.create_task(self.returned.wait())
                try:
                    await asyncio.wait({*flying, news}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
                for task in [task for task in flying if task.done() and not task.exception()]:
                    self.answers.put((flying.pop(task), task.result()))
                for task in flying:
                    if task.done():
                        task.result()  # raises what it failed with
        finally:
            for task, job in flying.items():
                task.cancel()
                self.waiting.append(job)
            self.returned.set()
            # Cancelled and failed alike have to be looked at, or asyncio complains.
            await asyncio.gather(*flying, return_exceptions=True)

    def _next(self) -> Job:
        job = self.waiting.popleft()
        if job.tries == self.config.attempts:
            reasons = "; ".join(f"{s.url}: {s.reason}" for s in self.servers if s.reason)
            raise RolloutError(
                f"rollout {job.sample} of request {job.request} was tried {job.tries} times "
                f"without an answer ({reasons}); look at the servers' logs, or raise "
                "rollout.server.timeout_s or attempts"
            )
        job.tries += 1
        return job

    async def _until_up(self, server: Server) -> None:
        """Waits until the server answers and holds the right weights."""
        while True:
            try:
                await asyncio.to_thread(self.revive, server)
            except ServerFailure as failure:
                server.reason = str(failure)
                self._check_patience()
                await asyncio.sleep(self.config.check_every_s)
            else:
                server.up = True
                self.none_since = None
                logger.warning("%s is back", server.url)
                return

    def _check_patience(self) -> None:
        if any(server.up for server in self.servers):
            self.none_since = None
            return
        self.none_since = self.none_since or time.monotonic()
        if time.monotonic() - self.none_since > self.config.wait_s:
            raise none_left(self.servers, self.config)


def none_left(servers: Sequence[Server], config: ServerConfig) -> RolloutError:
    """The error for the time when no server can be reached any more."""
    reasons = "; ".join(f"{server.url}: {server.reason}" for server in servers)
    return RolloutError(
        f"no vLLM server has been reached for {config.wait_s:g} s ({reasons}); start one with "
        "`srft serve` and the recipe of the run, correct rollout.servers, or raise "
        "rollout.server.wait_s"
    )
