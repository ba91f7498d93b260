"""The service: what comes out of an engine in its own thread, and what happens when somebody leaves."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import torch

from smollm3.completion import stream
from smollm3.engine.params import SamplingParams
from smollm3.errors import ContextOverflowError, ParameterError, PromptError
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.server.build import ServiceOptions, build_service
from smollm3.server.errors import EngineDeadError, FormError, QueueFullError, ShuttingDownError
from smollm3.server.service import Event, ParseOptions, Service, Work
from smollm3.tokenization import SmolLM3Tokenizer

PROMPT = [30, 40, 50, 60]


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def work(num: int = 8, **changes: Any) -> Work:
    fields = {name: changes.pop(name) for name in [*changes] if name in Work.__dataclass_fields__}
    return Work(PROMPT, SamplingParams(num, **changes), **fields)


async def read(service: Service, asked: Work) -> list[Event]:
    return [event async for event in service.answer(asked, "r")]


def text_of(events: list[Event], choice_idx: int = 0) -> str:
    return "".join(delta.text for event in events if event.choice_idx == choice_idx for delta in event.deltas)


def expected_text(model: SmolLM3ForCausalLM, tokenizer: SmolLM3Tokenizer, num: int, **arguments: Any) -> str:
    return "".join(chunk.text for chunk in stream(model, tokenizer, PROMPT, max_new_tokens=num, **arguments))


def test_an_answer_is_the_one_of_the_command_line(
    tiny: SmolLM3ForCausalLM, tiny_tokenizer: SmolLM3Tokenizer, tiny_service: Service
) -> None:
    async def main() -> None:
        async with tiny_service as service:
            events = await read(service, work(30))
            assert text_of(events) == expected_text(tiny, tiny_tokenizer, 30)
            assert [event.num_generated for event in events] == list(range(1, len(events) + 1))
            assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
            assert events[-1].finish_reason in ("stop", "length")
            assert service.num_active == 0

    run(main())


def test_many_at_once_answer_as_each_alone(
    tiny: SmolLM3ForCausalLM, tiny_tokenizer: SmolLM3Tokenizer, tiny_service: Service
) -> None:
    settings = {"do_sample": True, "temperature": 1.2}

    async def main() -> list[list[Event]]:
        async with tiny_service as service:
            return await asyncio.gather(
                *(read(service, work(20, seed=seed, **settings)) for seed in range(12))
            )

    for seed, events in enumerate(run(main())):
        assert text_of(events) == expected_text(tiny, tiny_tokenizer, 20, seed=seed, **settings)


def test_choices_are_the_samples_of_one_request(tiny_service: Service) -> None:
    async def main() -> list[Event]:
        async with tiny_service as service:
            return await read(service, work(6, num_choices=3, do_sample=True, seed=1))

    events = run(main())
    assert {event.choice_idx for event in events} == {0, 1, 2}
    assert sum(event.finish_reason is not None for event in events) == 3
    assert len({text_of(events, idx) for idx in range(3)}) > 1


def test_a_stop_string_ends_the_answer_and_its_count(
    tiny: SmolLM3ForCausalLM, tiny_tokenizer: SmolLM3Tokenizer, tiny_service: Service
) -> None:
    whole = expected_text(tiny, tiny_tokenizer, 40)
    stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
    num = next(
        idx + 1
        for idx, chunk in enumerate(
            stream(tiny, tiny_tokenizer, PROMPT, max_new_tokens=40, stop_strings=[stop])
        )
        if chunk.finish_reason
    )

    async def main() -> None:
        async with tiny_service as service:
            events = await read(service, work(40, stop=(stop,)))
            assert text_of(events) == whole[: whole.index(stop)]
            assert events[-1].finish_reason == "stop"
            assert events[-1].stop_string == stop
            assert events[-1].num_generated == num < 40
            await until(lambda: not service.engine.has_work)

    run(main())


async def until(condition: Any, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


def test_tokens_come_with_their_bytes_and_scores(
    tiny_tokenizer: SmolLM3Tokenizer, tiny_service: Service
) -> None:
    async def main() -> None:
        async with tiny_service as service:
            for events in (
                await read(service, work(5, logprobs=2)),
                await read(service, work(5, with_tokens=True)),
            ):
                tokens = [token for event in events for token in event.tokens]
                assert len(tokens) == 5
                assert b"".join(token.bytes for token in tokens) == b"".join(
                    tiny_tokenizer.token_bytes(token.token_id) for token in tokens
                )
            assert (await read(service, work(5)))[0].tokens == ()
            scored = (await read(service, work(1, logprobs=2)))[0].tokens[0]
            assert scored.logprob is not None
            assert scored.logprob <= 0
            assert scored.top is not None
            assert scored.top[0] == (scored.token_id, scored.logprob)

    run(main())


def test_thoughts_are_parsed_and_counted(loaded_135m: tuple[Any, Any]) -> None:
    model, tokenizer = loaded_135m

    async def main() -> None:
        async with build_service(model, tokenizer, "m") as service:
            ids = tokenizer.encode("The capital of France is")
            asked = Work(ids, SamplingParams(6), parse=ParseOptions(thinking_open=True))
            events = await read(service, asked)
            assert {delta.kind for event in events for delta in event.deltas} == {"reasoning"}
            assert events[-1].num_reasoning == events[-1].num_generated == 6

    run(main())


@pytest.mark.parametrize("how", ["close", "cancel", "before the first step"])
def test_whoever_leaves_frees_the_engine(tiny_service: Service, how: str) -> None:
    async def main() -> None:
        async with tiny_service as service:
            answering = service.answer(work(400), "r")
            if how == "close":
                await anext(answering)
                await answering.aclose()
            elif how == "cancel":

                async def consume() -> None:
                    async for _ in answering:
                        pass

                task = asyncio.create_task(consume())
                await asyncio.sleep(0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                answering.close()
            assert service.num_active == 0
            await until(lambda: not service.engine.has_work)
            assert text_of(await read(service, work(3)))

    run(main())


def test_what_can_never_run_is_said_before_anything_is_queued(tiny_service: Service) -> None:
    async def main() -> None:
        async with tiny_service as service:
            for asked, error, words in (
                (Work(PROMPT, SamplingParams(600)), ContextOverflowError, "604 is over the context of 512"),
                (Work([], SamplingParams(5)), PromptError, "empty"),
                (Work([999_999], SamplingParams(5)), PromptError, "vocabulary"),
                (work(5, logit_bias={5000: 1.0}), ParameterError, "logit_bias"),
                (work(5, num_choices=10**9), ParameterError, "num_samples"),
            ):
                with pytest.raises(error, match=words):
                    service.answer(asked, "r")
            assert service.num_active == 0

    run(main())


def test_the_context_can_be_made_shorter(tiny: SmolLM3ForCausalLM, tiny_tokenizer: SmolLM3Tokenizer) -> None:
    service = build_service(tiny, tiny_tokenizer, "tiny", ServiceOptions(max_model_len=10))
    service.check(work(6))
    with pytest.raises(ContextOverflowError, match="11 is over the context of 10"):
        service.check(work(7))
    with pytest.raises(ParameterError, match="max_model_len=9999"):
        build_service(tiny, tiny_tokenizer, "tiny", ServiceOptions(max_model_len=9999))


def test_one_too_many_is_refused(tiny: SmolLM3ForCausalLM, tiny_tokenizer: SmolLM3Tokenizer) -> None:
    async def main() -> None:
        async with build_service(tiny, tiny_tokenizer, "t", ServiceOptions(max_requests=2)) as service:
            held = [service.answer(work(300), "r") for _ in range(2)]
            with pytest.raises(QueueFullError) as caught:
                service.answer(work(1), "r")
            assert caught.value.retry_after == 1
            held[0].close()
            assert await read(service, work(1))

    run(main())


def test_draining_finishes_what_is_there_and_takes_nothing_new(tiny_service: Service) -> None:
    async def main() -> None:
        async with tiny_service as service:
            answering = service.answer(work(50), "r")
            service.drain()
            with pytest.raises(ShuttingDownError):
                service.answer(work(1), "r")
            events = [event async for event in answering]
            assert events[-1].finish_reason is not None
            await asyncio.wait_for(service.drained(), 5)

    run(main())


def test_closing_ends_what_runs(tiny_service: Service) -> None:
    async def main() -> None:
        async with tiny_service as service:
            answering = service.answer(work(400), "r")
            await anext(answering)
        with pytest.raises(ShuttingDownError):
            async for _ in answering:
                pass

    run(main())


def test_a_dead_engine_fails_everybody_and_is_known(
    tiny_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with tiny_service as service:
            first = service.answer(work(400), "r")
            await anext(first)
            second = service.answer(work(400), "r")

            def fail(rows: Any) -> Any:
                raise RuntimeError("the machine is on fire")

            monkeypatch.setattr(service.engine.runner, "forward", fail)
            for answering in (first, second):
                with pytest.raises(EngineDeadError):
                    async for _ in answering:
                        pass
            assert service.state == "dead"
            with pytest.raises(EngineDeadError):
                service.answer(work(1), "r")

    run(main())


def test_a_request_that_fails_on_its_way_fails_alone(
    tiny_service: Service, tiny_tokenizer: SmolLM3Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with tiny_service as service:
            good, bad = service.answer(work(30), "good"), service.answer(work(30), "bad")

            def fail(*_: Any) -> Any:
                raise RuntimeError("a fault in the parser")

            monkeypatch.setattr(bad._choices[0].text, "push", fail)
            with pytest.raises(Exception, match="failed while it ran"):
                async for _ in bad:
                    pass
            assert [event async for event in good][-1].finish_reason is not None
            assert service.state == "ready"
            await until(lambda: not service.engine.has_work)

    run(main())


def test_embeddings_have_length_one_and_are_what_the_model_says(
    tiny: SmolLM3ForCausalLM, tiny_service: Service
) -> None:
    with torch.inference_mode():
        hidden = tiny.model(input_ids=torch.tensor([PROMPT]), return_dict=True).last_hidden_state[0]

    async def main() -> None:
        async with tiny_service as service:
            busy = service.answer(work(100), "r")
            (mean, _), (last,) = await service.embed([PROMPT, [5]]), await service.embed([PROMPT], "last")
            for vector, expected in ((mean, hidden.mean(0)), (last, hidden[-1])):
                torch.testing.assert_close(torch.tensor(vector), expected / expected.norm())
            assert [event async for event in busy][-1].finish_reason is not None
            for ids, error in (([], PromptError), ([-1], PromptError), ([1] * 513, ContextOverflowError)):
                with pytest.raises(error):
                    await service.embed([PROMPT, ids])
            assert service.num_active == 0

    run(main())


def test_a_samples_own_error_fails_its_request_alone(tiny_service: Service) -> None:
    class Broken:
        ended = False

        def mask(self) -> Any:
            raise ParameterError("this grammar is stuck")

        def accept(self, token_id: int) -> None: ...

        def fork(self) -> "Broken":
            return self

    async def main() -> None:
        async with tiny_service as service:
            good = service.answer(work(20), "good")
            with pytest.raises(FormError, match="this grammar is stuck"):
                await read(service, work(20, constraint=Broken()))
            assert [event async for event in good][-1].finish_reason is not None

    run(main())


def test_many_texts_at_once_have_the_vectors_of_each_alone_and_leave_room_to_others(
    loaded_135m: tuple[SmolLM3ForCausalLM, SmolLM3Tokenizer],
) -> None:
    service = build_service(*loaded_135m, "small", ServiceOptions(engine="native"))
    texts = [[(place * 7 + idx) % 900 + 20 for place in range(1 + idx % 23)] for idx in range(150)]
    most = 0

    async def main() -> None:
        nonlocal most
        async with service:
            made = asyncio.ensure_future(service.embed(texts))
            answer = asyncio.ensure_future(read(service, work(5)))
            while not made.done():
                stats = await service.stats()
                most = max(most, stats.num_waiting + stats.num_running)
                assert service.num_active <= 2
            assert answer.done(), "a short request waited for the whole batch"
            vectors = made.result()
            for idx in (0, 1, 22, 77, 149):
                (alone,) = await service.embed([texts[idx]])
                assert vectors[idx] == alone
                assert sum(x * x for x in alone) == pytest.approx(1)
            assert text_of(await answer) == text_of(await read(service, work(5)))

    run(main())
    assert 1 < most <= 65


def test_whoever_leaves_a_batch_of_texts_frees_its_places(tiny_service: Service) -> None:
    async def main() -> None:
        async with tiny_service as service:
            made = asyncio.ensure_future(service.embed([[place % 50 + 4] * 500 for place in range(500)]))
            while (await service.stats()).steps_total < 3:
                assert not made.done()
            made.cancel()
            with pytest.raises(asyncio.CancelledError):
                await made
            stats = await service.stats()
            assert (stats.num_waiting, stats.num_running) == (0, 0)
            assert stats.steps_total < 100
            assert service.num_active == 0
            assert text_of(await read(service, work(3)))

    run(main())


def test_a_step_that_fails_fails_the_texts_that_wait(
    tiny_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with tiny_service as service:
            monkeypatch.setattr(service.engine.runner, "hidden", lambda rows: 1 / 0)
            with pytest.raises(EngineDeadError):
                await service.embed([PROMPT, PROMPT])
            assert service.num_active == 0

    run(main())
