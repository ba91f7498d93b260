"""Decode steps on a CUDA device, recorded once as a graph and then replayed.

A step of one id per row is some two thousand small kernels, and launching them one by one takes many times
as long as they compute. In: rows 0 to R - 1 of a slot cache, an id and a place for each. Out: their logits.
Knows neither slots nor sampling.
Shapes: R rows, C room in tokens, K kv heads, D head dim, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from smollm3.model.slot_cache import SlotCache, seen_from
from smollm3.quantization.bitsandbytes_linear import Linear4bit

if TYPE_CHECKING:
    from smollm3.model.smollm3 import SmolLM3ForCausalLM

Work = Callable[[], None]


@dataclass(frozen=True)
class Step:
    """A recorded step: what it reads, how to run it again, and where its logits are then."""

    ids: Tensor  # [R, 1]
    starts: Tensor  # [R]
    logits: Tensor  # fp32 [R, V]
    replay: Work


class StepCache:
    """Rows 0 to R - 1 of a slot cache, each with one new id at a place that a tensor names."""

    max_cache_len: int | None = None

    def __init__(self, cache: SlotCache, starts: Tensor) -> None:
        self._cache, self._starts = cache, starts
        self._rows = torch.arange(len(starts), device=starts.device)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: places come as positions, and what may be seen as a mask."""
        return 0

    def allowed(self) -> Tensor:
        """Return which keys each row's new id sees: bool [R, 1, 1, C]."""
        return seen_from(self._starts, self._cache.room)

    def update(self, k: Tensor, v: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Write k and v [R, K, 1, D] at each row's place; return the rows' whole room [R, K, C, D]."""
        keys, values = self._cache.put(layer_idx, self._rows, self._starts, k, v)
        return keys[: len(self._rows)], values[: len(self._rows)]


class CapturedSteps:
    """The steps of one model over one slot cache, a recording for every number of rows that comes twice.

    Args:
        record: takes a step's work, which it need not do, and returns what does it from now on.
    """

    def __init__(
        self, model: "SmolLM3ForCausalLM", cache: SlotCache, record: Callable[[Work], Work] | None = None
    ) -> None:
        self._model, self._cache = model, cache
        self._record = CudaGraphs() if record is None else record
        self._steps: dict[int, Step | None] = {}  # None: this number of rows came once
        self._memory: tuple[int, ...] = ()

    def run(self, token_ids: Sequence[int], starts: Sequence[int]) -> Tensor | None:
        """Take in an id per row, rows 0 to R - 1; return fp32 logits [R, V], or None: it must run plainly.

        The first step of its kind runs plainly, so that what is made at first use is there when the second is
        recorded. A recording holds the cache's memory: once the cache has grown, all begin anew.
        """
        memory = (self._cache.room, self._cache.num_rows, *(keys.data_ptr() for keys in self._cache.keys[:1]))
        if memory != self._memory:
            self._steps.clear()
            self._memory = memory
        num = len(token_ids)
        if num == len(self._cache.slots):  # the rows behind them hold nothing
            num = min(_rounded(num), self._cache.num_rows)
        if num not in self._steps:
            self._steps[num] = None
            return None
        step = self._steps[num]
        if step is None:
            step = self._steps[num] = self._recorded(num)
        spare = [0] * (num - len(token_ids))  # what they write is overwritten by the row's next sequence
        step.ids.copy_(torch.tensor([*token_ids, *spare])[:, None])
        step.starts.copy_(torch.tensor([*starts, *spare]))
        step.replay()
        return step.logits[: len(token_ids)].clone()

    def _recorded(self, num: int) -> Step:
        model, weight = self._model, self._model.model.embed_tokens.weight
        ids, starts = torch.zeros(2, num, dtype=torch.long, device=weight.device)
        logits = torch.empty(num, model.config.vocab_size, device=weight.device)

        def work() -> None:
            view = StepCache(self._cache, starts)
            hidden = model.model(
                input_ids=ids[:, None],
                attention_mask=view.allowed(),
                position_ids=starts[:, None],
                past_key_values=view,
                use_cache=True,
                return_dict=True,
            ).last_hidden_state
            logits.copy_(model.lm_head(hidden[:, -1]))

        return Step(ids[:, None], starts, logits, self._record(work))


class CudaGraphs:
    """Records work as CUDA graphs, which share one pool of memory since they never run side by side."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> Work:
        """Record all kernels that `work` would launch, and return what launches them together."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: only what this one does is recorded.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        replay: Work = graph.replay
        return replay


def can_capture(model: "SmolLM3ForCausalLM") -> bool:
    """Whether decode steps can be recorded: on CUDA, with layers and attention that wait for no result."""
    rope = model.config.rope_parameters or {}
    return (
        model.model.embed_tokens.weight.is_cuda
        and model.attn_implementation in ("sdpa", "eager")
        and rope.get("rope_type") != "dynamic"
        and all(isinstance(x, nn.Linear | Linear4bit) for x in model.modules() if hasattr(x, "in_features"))
    )


def _rounded(num: int) -> int:
    """Round a number of rows up, by a quarter at most, so that few numbers are ever recorded."""
    step = 1 << max(0, num.bit_length() - 3)
    return -(-num // step) * step
