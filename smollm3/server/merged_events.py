"""The events of several works as one stream, each with its work's place; they run side by side."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from smollm3.server.context import Context
from smollm3.server.service import Answering
from smollm3.server.work import Event, Work


class MergedEvents:
    """Queues all works at once, or none; iterate over (work's place, event), and `close` it in the end."""

    def __init__(self, context: Context, works: Sequence[Work]) -> None:
        self._answers: list[Answering] = []
        try:
            for idx, work in enumerate(works):
                name = context.request_id if len(works) == 1 else f"{context.request_id}-{idx}"
                self._answers.append(context.service.answer(work, name))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up what still runs."""
        for answering in self._answers:
            answering.close()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        if len(self._answers) == 1:
            async for event in self._answers[0]:
                yield 0, event
            return
        nexts = {asyncio.ensure_future(anext(answering)): idx for idx, answering in enumerate(self._answers)}
        try:
            while nexts:
                done, _ = await asyncio.wait(nexts, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    idx = nexts.pop(future)
                    try:
                        event = future.result()
                    except StopAsyncIteration:
                        continue
                    nexts[asyncio.ensure_future(anext(self._answers[idx]))] = idx
                    yield idx, event
        finally:
            for future in nexts:
                future.cancel()
