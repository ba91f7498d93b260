"""How many tokens a request took: the last events of its choices in, OpenAI's usage out."""

from collections.abc import Mapping, Sequence
from typing import Any

from smollm3.server.work import Event, Work


def usage_of(works: Sequence[Work], last: Mapping[tuple[int, int], Event]) -> dict[str, Any]:
    """Return the token counts of answers; `last` holds each choice's last event by (work, choice)."""
    num_prompt = sum(len(one.prompt_ids) for one in works)
    num_generated = sum(event.num_generated for event in last.values())
    num_reused: dict[int, int] = {}
    for (work_idx, _), event in last.items():
        num_reused[work_idx] = max(num_reused.get(work_idx, 0), event.num_reused)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
        "prompt_tokens_details": {"cached_tokens": sum(num_reused.values()), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": sum(event.num_reasoning for event in last.values()),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def response_usage(work: Work, last: Event) -> dict[str, Any]:
    """Return the token counts of one answer as responses spell them."""
    num_prompt = len(work.prompt_ids)
    return {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": last.num_reused, "cache_write_tokens": 0},
        "output_tokens": last.num_generated,
        "output_tokens_details": {"reasoning_tokens": last.num_reasoning},
        "total_tokens": num_prompt + last.num_generated,
    }
