"""A long prompt's past on disk: computed once, saved as safetensors, loaded into a runner.

In: a model, a runner and ids. Out: a file with the ids, the runner's own arrays, and what they were made
with. A file of another model, of other settings or sizes is refused in one line. Knows no text.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from smollm3.checkpoint.safetensors import SafetensorsFile, open_safetensors, write_safetensors
from smollm3.engine.runner import CacheFullError, Row, Runner
from smollm3.errors import CheckpointError, ParameterError
from smollm3.model.native_runner import NativeRunner, refusal
from smollm3.model.smollm3 import SmolLM3ForCausalLM
from smollm3.model.torch_runner import context_size

FORMAT, VERSION = "smollm3-prompt-cache", "1"
CHUNK = 512  # ids of one forward call
NUM_SAMPLES = 64  # elements of each weight that the fingerprint reads
IDS, PAST = "token_ids", "past."
NATIVE_ONLY = "prompt caches are the native engine's, which does not run this model here"
# What of a config changes keys and values.
_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_parameters", "no_rope_layers",
    "attention_bias", "mlp_bias", "layer_types", "sliding_window", "max_position_embeddings",
)  # fmt: skip
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class PromptCache:
    """A checked file: the prompt's ids, and its past by memory map."""

    path: Path
    token_ids: tuple[int, ...]
    arrays: Arrays

    def load_into(self, runner: Runner, salts: Iterable[str] = ("",)) -> None:
        """Let `runner.reuse` find the past, for requests of each of these salts."""
        if not isinstance(runner, NativeRunner):
            raise ParameterError(f"{self.path}: {NATIVE_ONLY}")
        for salt in salts:
            try:
                runner.import_past(self.token_ids, self.arrays, salt)
            except (ParameterError, CacheFullError) as error:
                raise CheckpointError(f"{self.path}: {error}") from None


def save_prompt_cache(
    path: Path,
    model: SmolLM3ForCausalLM,
    runner: NativeRunner,
    token_ids: Sequence[int],
    watch: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> None:
    """Compute a prompt's past and write it; the file appears under its name when it is whole.

    `watch` is handed the places at which the prompt's parts begin and gives them back as they are taken in.
    Raises ParameterError where the prompt leaves no room for an answer.
    """
    if not 0 < len(token_ids) < runner.context_size - 1:
        raise ParameterError(
            f"the prompt has {len(token_ids)} tokens, the model's context {runner.context_size}: shorten it"
        )
    slot = runner.open(len(token_ids))
    try:
        for start in watch(range(0, len(token_ids), CHUNK)):
            runner.forward([Row(slot, token_ids[start : start + CHUNK], start, num_logits=0)])
        arrays = runner.export_past(slot, len(token_ids))
    finally:
        runner.close(slot)
    tensors = {f"{PAST}{name}": torch.from_numpy(array) for name, array in arrays.items()}
    tensors[IDS] = torch.tensor(list(token_ids), dtype=torch.int32)
    write_safetensors(path, tensors, _metadata(model, runner.kv_bits))


def open_prompt_cache(path: Path, model: SmolLM3ForCausalLM, kv_bits: int = 16) -> PromptCache:
    """Open a file and check it against a model; nothing is copied yet.

    Raises CheckpointError for a file that does not fit, ParameterError where the native engine cannot run.
    """
    if (reason := refusal(model)) is not None:
        raise ParameterError(f"{path}: {NATIVE_ONLY}: {reason}")
    file = open_safetensors(path)
    if file.metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no prompt cache: smollm3 prompt-cache writes one")
    if file.metadata.get("version") != VERSION:
        raise CheckpointError(
            f"{path} is a prompt cache of version {file.metadata.get('version')!r:.40}, this package reads "
            f"version {VERSION}: save it anew"
        )
    for name, own in _metadata(model, kv_bits).items():
        if (found := file.metadata.get(name)) != own:
            what = "another model" if name == "model" else f"{name} {found!r:.40}, not {own!r}"
            raise CheckpointError(
                f"{path} was made with {what}: save it anew with this model and these settings"
            )
    return PromptCache(path, _token_ids(file, model), _arrays(file))


def fingerprint(model: SmolLM3ForCausalLM) -> str:
    """Return what tells a model from others: a hash of its config and of samples of every weight."""
    config = model.config.to_dict()
    digest = hashlib.sha256(json.dumps({name: config.get(name) for name in _FIELDS}, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        flat = tensor.detach().reshape(-1)
        places = torch.linspace(0, max(flat.numel() - 1, 0), NUM_SAMPLES, dtype=torch.float64).long()
        picked = flat[places.to(flat.device)].cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(picked.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _metadata(model: SmolLM3ForCausalLM, kv_bits: int) -> dict[str, str]:
    own = {"format": FORMAT, "version": VERSION, "model": fingerprint(model)}
    return {**own, "engine": "native", "kv_bits": str(kv_bits)}


def _token_ids(file: SafetensorsFile, model: SmolLM3ForCausalLM) -> tuple[int, ...]:
    info, limit = file.tensors.get(IDS), context_size(model)
    if info is None or info.dtype != torch.int32 or len(info.shape) != 1:
        raise CheckpointError(f"{file.path} has no list of ids: it is damaged")
    if not 0 < info.shape[0] < limit:
        raise CheckpointError(f"{file.path} has {info.shape[0]} ids, the context is {limit}: it is damaged")
    ids = file.load(IDS)
    if int(ids.min()) < 0 or int(ids.max()) >= model.config.vocab_size:
        raise CheckpointError(f"{file.path} has ids that the model does not know: it is damaged")
    return tuple(ids.tolist())


def _arrays(file: SafetensorsFile) -> dict[str, NDArray[Any]]:
    names = [name for name in file.tensors if name.startswith(PAST)]
    if len(names) + 1 != len(file.tensors):
        raise CheckpointError(f"{file.path} has tensors that no prompt cache has: it is damaged")
    return {name.removeprefix(PAST): file.load(name).numpy() for name in names}
