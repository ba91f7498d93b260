"""`smollm3 generate` on the small trained model."""

import dataclasses
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from emulator import Terminal

from smollm3.cli.answer import Answer, AnswerStream, can_think, chat_prompt, raw_prompt, read_template
from smollm3.cli.generate import join_prompt, speed
from smollm3.cli.loading import Loaded, describe, load
from smollm3.cli.main import main
from smollm3.cli.options import LoadOptions
from smollm3.cli.settings import Settings
from smollm3.errors import ContextOverflowError, ParameterError, PromptError, TemplateError
from smollm3.text.parser import Delta
from smollm3.tokenization import SmolLM3Tokenizer

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
THINKING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "assistant:{% if enable_thinking %} <think>\n{% else %} <think>\n\n</think>\n{% endif %}"
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(preloaded: Loaded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `smollm3 generate` with words and what is piped in; gives code, stdout, stderr."""

    def run(*words: str, piped: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(piped)))
        code = main(["generate", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_question_from_the_argument(run: Run) -> None:
    assert run(QUESTION, "--max-new-tokens", "20") == (0, f"{ANSWER}\n", "")


def test_a_question_from_a_pipe_in_two_parts(run: Run, loaded: Loaded) -> None:
    code, out, _ = run(
        "What is its capital?", "--max-new-tokens", "3", "--json", piped=b"France is a country.\n"
    )
    joined = "France is a country.\n\nWhat is its capital?"
    prompt = chat_prompt(loaded, [{"role": "user", "content": joined}], Settings(), None)
    assert code == 0
    assert json.loads(out)["usage"]["prompt_tokens"] == len(prompt.ids)
    assert "France is a country.\n\nWhat is its capital?" in prompt.text


def test_one_json_object(run: Run) -> None:
    code, out, error = run(QUESTION, "--json", "--max-new-tokens", "20")
    record = json.loads(out)
    assert (code, error, out.count("\n")) == (0, "", 1)
    assert {k: record[k] for k in ("text", "reasoning", "tool_calls", "finish_reason")} == {
        "text": ANSWER, "reasoning": None, "tool_calls": [], "finish_reason": "stop",
    }  # fmt: skip
    usage, timings = record["usage"], record["timings"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == 8
    assert 0 < timings["first_token_s"] <= timings["total_s"]
    assert timings["tokens_per_second"] > 0


def test_verbose_says_how_fast_it_was_on_stderr(run: Run) -> None:
    code, out, error = run(QUESTION, "-v", "--max-new-tokens", "4")
    assert (code, out) == (0, "The capital of France\n")
    assert re.fullmatch(
        r"loaded in [\d.]+ s, 37 prompt tokens, first token after [\d.]+ s, 4 tokens, [\d.]+ tok/s\n", error
    )


def test_raw_continues_the_text(run: Run, loaded: Loaded) -> None:
    code, out, error = run("The capital of France is", "--raw", "--max-new-tokens", "2", "--json")
    record = json.loads(out)
    assert (code, error) == (0, "")
    assert record["usage"]["prompt_tokens"] == len(loaded.tokenizer.encode("The capital of France is"))
    assert record["text"].strip().startswith("Paris")


def test_a_model_without_a_template_is_continued_raw_with_a_note(
    run: Run, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SmolLM3Tokenizer, "chat_template", None)
    monkeypatch.setattr(loaded.tokenizer, "chat_templates", {})
    code, out, error = run("The capital of France is", "--max-new-tokens", "1")
    assert (code, out) == (0, " Paris\n")
    assert error.endswith("has no chat template: the prompt is continued as it is\n")
    code, _, error = run("Hi", "--system", "Be brief.")
    assert code == 1
    assert "no chat template, so --system has no place" in error


def test_stop_ends_the_answer_before_the_text(run: Run) -> None:
    code, out, _ = run(QUESTION, "--stop", "France", "--max-new-tokens", "20", "--json")
    record = json.loads(out)
    assert code == 0
    assert (record["text"].strip(), record["finish_reason"]) == ("The capital of", "stop")


def test_a_seed_repeats_and_another_differs(run: Run) -> None:
    words = ["Tell a story.", "--temperature", "1.5", "--max-new-tokens", "12", "--seed"]
    first, again, other = (run(*words, seed)[1] for seed in ("1", "1", "2"))
    assert first == again
    assert first != other


def test_the_system_prompt_arrives(run: Run, loaded: Loaded) -> None:
    _, out, _ = run("Hi", "--system", "Be brief.", "--max-new-tokens", "1", "--json")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert json.loads(out)["usage"]["prompt_tokens"] == len(
        chat_prompt(loaded, messages, Settings(), None).ids
    )


@pytest.mark.parametrize(
    ("words", "piped", "message"),
    [
        ([], b"", "there is no prompt: give one as an argument, pipe one in"),
        ([" "], b" \n", "there is no prompt"),
        (["hi"], b"\xff", "the input is not UTF-8 text (byte 0)"),
        (["hi", "--raw", "--system", "s"], b"", "--raw renders no chat: leave --system out"),
        (["hi", "--raw", "--template", "fixed"], b"", "--raw renders no chat: leave --template out"),
        (["hi", "--template", "/no/such.jinja"], b"", "--template /no/such.jinja: No such file"),
        (["hi", "--think"], b"", "no thinking mode"),
        (["hi", "--max-new-tokens", "9000"], b"", "9000"),
        (["word " * 9000], b"", "8192"),
    ],
)
def test_bad_input_is_one_line(run: Run, words: list[str], piped: bytes, message: str) -> None:
    code, out, error = run(*words, piped=piped)
    assert (code, out) == (1, "")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_ctrl_c_is_130_and_keeps_what_was_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = AnswerStream.__iter__

    def interrupted(self: AnswerStream) -> Any:
        for number, delta in enumerate(whole(self)):
            if number == 3:
                raise KeyboardInterrupt
            yield delta

    monkeypatch.setattr(AnswerStream, "__iter__", interrupted)
    assert run(QUESTION) == (130, "The capital of\n", "")
    assert run(QUESTION, "--json") == (130, "", "")


def test_on_a_terminal_the_text_streams_escaped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stdin", terminal)
    keep = AnswerStream._keep

    def hostile(self: AnswerStream, deltas: Sequence[Delta]) -> list[Delta]:
        return keep(
            self,
            [dataclasses.replace(delta, text=delta.text.replace(" France", "\x1b[2J")) for delta in deltas],
        )

    monkeypatch.setattr(AnswerStream, "_keep", hostile)
    assert main(["generate", QUESTION, "--max-new-tokens", "20"]) == 0
    assert terminal.lines == [r"The capital of\x1b[2J is Paris."]


def test_thinking_templates_are_switched(loaded: Loaded, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    path = tmp_path / "t.jinja"
    path.write_text(THINKING)
    template = read_template(str(path))
    assert can_think(loaded, template)
    assert not can_think(loaded, None)
    assert can_think(loaded, "fixed")
    prompt = chat_prompt(loaded, messages, Settings(thinking=True), template)
    assert prompt.thinking_open
    deltas = list(AnswerStream(loaded, prompt, Settings(max_new_tokens=3)))
    assert {delta.kind for delta in deltas} == {"reasoning"}
    assert not chat_prompt(loaded, messages, Settings(thinking=False), template).thinking_open
    with pytest.raises(ParameterError, match="no thinking mode"):
        chat_prompt(loaded, messages, Settings(thinking=True), None)
    assert chat_prompt(loaded, messages, Settings(thinking=False), None).ids, (
        "answering at once is all it can"
    )
    with pytest.raises(TemplateError, match="give 'fixed' or a jinja file"):
        read_template(str(tmp_path))


def test_tags_that_are_special_tokens_still_part_the_answer(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    special = [*loaded.tokenizer.all_special_tokens, "<think>"]
    monkeypatch.setattr(SmolLM3Tokenizer, "all_special_tokens", special)
    prompt = chat_prompt(loaded, [{"role": "user", "content": QUESTION}], Settings(), None)
    stream = AnswerStream(loaded, prompt, Settings(max_new_tokens=20))
    assert "".join(delta.text for delta in stream) == ANSWER, "the end of turn is left out all the same"


def test_leaving_the_stream_cancels_and_keeps_count(loaded: Loaded) -> None:
    prompt = raw_prompt(loaded, "Once upon a time")
    stream = AnswerStream(loaded, prompt, Settings(max_new_tokens=50))
    for _ in stream:
        if stream.answer.num_generated == 3:
            break
    assert stream.answer.num_generated == 3
    assert stream.answer.finish_reason is None
    assert stream.finish() == []
    assert stream.answer.message() == {"role": "assistant", "content": stream.answer.content}


def test_a_prompt_that_fills_the_context_gives_both_numbers(loaded: Loaded) -> None:
    short = dataclasses.replace(loaded)
    prompt = raw_prompt(short, "word " * 9000)
    with pytest.raises(ContextOverflowError, match=r"900\d.*8192"):
        list(AnswerStream(short, prompt, Settings()))


@pytest.mark.parametrize(
    ("argument", "piped", "joined"),
    [
        ("a", None, "a"),
        (None, "b\n", "b"),
        ("a", "b\n\n", "b\n\na"),
        ("a", "", "a"),
        ("a", " \n", "a"),
        ("  indented", "x", "x\n\n  indented"),
    ],
)
def test_argument_and_pipe_are_joined(argument: str | None, piped: str | None, joined: str) -> None:
    assert join_prompt(argument, piped) == joined


def test_nothing_to_join_is_an_error() -> None:
    with pytest.raises(PromptError, match="there is no prompt"):
        join_prompt(None, None)


def test_speed_of_short_answers() -> None:
    assert Answer(3).tokens_per_second is None
    assert speed(Answer(3), 1.0) == "loaded in 1.00 s, 3 prompt tokens, first token after none, 0 tokens"
    answer = Answer(3, num_generated=11, first_token_s=1.0, total_s=2.0)
    assert answer.tokens_per_second == pytest.approx(10.0)


def test_loading_as_the_options_say(small_model: Path) -> None:
    options = LoadOptions(str(small_model), dtype="bf16", attn_implementation="eager", device="cpu")
    loaded = load(options)
    assert str(loaded.model.dtype) == "torch.bfloat16"
    assert describe(loaded) == (
        f"{small_model}: 135 million parameters in 269.0 MB, bfloat16 on cpu, context of 8,192 tokens"
    )
    quantised = describe(load(LoadOptions(str(small_model), quantize="int8", device="cpu")))
    assert "135 million parameters in 163." in quantised
