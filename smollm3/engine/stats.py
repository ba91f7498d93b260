"""What an engine has done and what it holds now, in numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """A snapshot; what ends in `_total` only grows.

    num_waiting, num_running: samples without and with a place in the KV cache.
    num_open: slots of the runner that are open, one per running sample at most.
    cache_tokens_used, cache_tokens_total: tokens that sequences hold, and room (None: without a bound).
    prompt_ids_total, prompt_ids_reused_total: of prompts that were begun, and how many of them came from the
        cache. A sample that was preempted counts anew.
    drafted_total, accepted_total: ids that prompt lookup guessed, and those that were right.
    forward_cpu_seconds_total, sampling_cpu_seconds_total: processor time of the thread that steps, in the
        runner and in choosing ids; what the runner's own threads use is not counted.
    """

    num_waiting: int
    num_running: int
    cache_tokens_used: int
    cache_tokens_total: int | None
    num_open: int = 0
    prompt_ids_total: int = 0
    prompt_ids_reused_total: int = 0
    generated_total: int = 0
    preemptions_total: int = 0
    drafted_total: int = 0
    accepted_total: int = 0
    failed_total: int = 0
    steps_total: int = 0
    forward_cpu_seconds_total: float = 0.0
    sampling_cpu_seconds_total: float = 0.0
