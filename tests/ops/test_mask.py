"""Who sees whom: spelled-out answers for padding, packing, windows and caches."""

import pytest
import torch
from torch import Tensor

from smollm3.errors import ParameterError
from smollm3.ops.mask import Layout, given_visibility, layout, positions_from_mask, visibility


def place(
    mask: list[list[int]] | None = None,
    positions: list[list[int]] | None = None,
    *,
    B: int = 1,
    T: int = 4,
    past: int = 0,
    num_keys: int | None = None,
) -> Layout:
    return layout(
        None if mask is None else torch.tensor(mask),
        None if positions is None else torch.tensor(positions),
        batch_size=B,
        num_queries=T,
        num_keys=num_keys or past + T,
        past=past,
        device=torch.device("cpu"),
    )


def picture(where: Layout, window: int | None = None, row: int = 0) -> list[str]:
    allowed = visibility(where, window).allowed
    assert allowed is not None
    return [
        "".join("x" if seen else "." for seen in query) for query in allowed[min(row, len(allowed) - 1), 0]
    ]


def test_no_mask_is_built_where_order_alone_decides() -> None:
    for where in (
        place(),
        place([[1, 1, 1, 1]]),
        place(positions=[[0, 1, 2, 3]]),
        place(positions=[[7, 9, 11, 40]]),
        place(num_keys=16),
        place(T=1, past=5),
        place([[1] * 6], T=1, past=5),
        place(positions=[[5]], T=1, past=5),
    ):
        assert visibility(where).allowed is None
        assert visibility(where, window=100).allowed is None


def test_chunks_and_fixed_caches() -> None:
    assert picture(place(T=2, past=3)) == ["xxxx.", "xxxxx"]
    assert picture(place(T=1, past=2, num_keys=6)) == ["xxx..."]
    assert picture(place(T=2, past=1, num_keys=5)) == ["xx...", "xxx.."]
    assert picture(place([[0, 1, 1]], T=1, past=2, num_keys=5)) == [".xx.."]
    assert picture(place([[0, 1, 1, 0, 0]], T=1, past=2, num_keys=5)) == [".xx.."]


def test_padding_on_either_side() -> None:
    mask = [[0, 0, 1, 1], [1, 1, 0, 0]]
    assert picture(place(mask, B=2)) == ["....", "....", "..x.", "..xx"]
    assert picture(place(mask, B=2), row=1) == ["x...", "xx..", "xx..", "xx.."]


def test_windows() -> None:
    assert picture(place(), window=2) == ["x...", "xx..", ".xx.", "..xx"]
    assert picture(place(T=1, past=3), window=3) == [".xxx"]
    assert picture(place([[0, 1, 1, 1]]), window=2) == ["....", ".x..", ".xx.", "..xx"]


def test_packed_documents() -> None:
    assert picture(place(positions=[[0, 1, 0, 1]])) == ["x...", "xx..", "..x.", "..xx"]
    assert picture(place(positions=[[0, 0, 1, 2]])) == ["x...", ".x..", ".xx.", ".xxx"]
    assert picture(place(positions=[[5, 6, 3, 4]])) == ["x...", "xx..", "..x.", "..xx"]
    assert picture(place(positions=[[0, 1, 0, 1]], B=2), row=1) == ["x...", "xx..", "..x.", "..xx"]
    assert picture(place(positions=[[0, 1, 2, 0]]), window=2) == ["x...", "xx..", ".xx.", "...x"]


def test_packed_documents_with_padding_between_and_around() -> None:
    where = place([[0, 1, 1, 0, 1, 1]], [[1, 0, 1, 1, 0, 1]], T=6)
    assert picture(where) == ["......", ".x....", ".xx...", ".xx...", "....x.", "....xx"]
    padded = place([[0, 0, 1, 1]], [[1, 1, 0, 1]])
    assert picture(padded) == ["....", "....", "..x.", "..xx"]


def test_packed_documents_over_a_cache() -> None:
    assert picture(place(positions=[[2, 0, 1]], T=3, past=2)) == ["xxx..", "...x.", "...xx"]
    # Position 1 after four cached tokens: only the last of them is of its document.
    assert picture(place(positions=[[1]], T=1, past=4)) == ["...xx"]
    assert picture(place(positions=[[0, 1]], T=2, past=3)) == ["...x.", "...xx"]


@pytest.mark.parametrize(
    ("mask", "past", "expected"),
    [
        ([[0, 0, 1, 1]], 0, [[0, 0, 0, 1]]),
        ([[1, 1, 0, 0]], 0, [[0, 1, 2, 3]]),
        ([[0, 1, 0, 1, 1]], 0, [[0, 0, 0, 1, 2]]),
        ([[1, 1, 0, 0, 1]], 4, [[2]]),
        ([[0, 1, 1, 1]], 2, [[1, 2]]),
        ([[0, 0, 0, 0]], 0, [[0, 0, 1, 2]]),
    ],
)
def test_positions_count_real_tokens(mask: list[list[int]], past: int, expected: list[list[int]]) -> None:
    tensor = torch.tensor(mask)
    positions = positions_from_mask(tensor, past, tensor.shape[1] - past)
    assert positions.tolist() == expected


def test_a_mask_of_the_wrong_size_is_named() -> None:
    with pytest.raises(
        ParameterError, match=r"shape \[1, 3\]; 1 rows of 2 cached and 4 new tokens need \[1, 6\]"
    ):
        place([[1, 1, 1]], past=2)
    with pytest.raises(ParameterError, match="2 rows"):
        place([[1, 1, 1, 1]], B=2)


def test_ready_made_masks_are_used_as_they_are() -> None:
    allowed = torch.rand(2, 1, 3, 9) > 0.5
    assert given_visibility(allowed).allowed is allowed
    windowed = given_visibility(allowed, window=2).allowed
    assert windowed is not None
    for before, after in zip(allowed.flatten(0, 2), windowed.flatten(0, 2), strict=True):
        assert after.nonzero().flatten().tolist() == before.nonzero().flatten().tolist()[-2:]
    for wrong in (allowed.float(), allowed[:, 0]):
        with pytest.raises(ParameterError, match="must be bool"):
            given_visibility(wrong)


def brute_force(mask: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """The rules in words: real, not later, same document, not further back than the window."""
    B, T = mask.shape
    allowed = torch.zeros(B, 1, T, T, dtype=torch.bool)
    for b in range(B):
        doc, last, docs = 0, None, []
        for t in range(T):
            if mask[b, t]:
                if last is not None and positions[b, t] <= last:
                    doc += 1
                last = positions[b, t]
            docs.append(doc)
        for i in range(T):
            for j in range(i + 1):
                near = window is None or i - j < window
                allowed[b, 0, i, j] = bool(mask[b, j]) and docs[i] == docs[j] and near
    return allowed


@pytest.mark.parametrize("seed", range(30))
def test_random_batches_equal_the_rules_spelled_out(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    B, T = 3, 7
    mask = (torch.rand(B, T, generator=generator) > 0.3).long()
    mask[0, 0] = 0  # never all real, so that a mask is built
    positions = torch.randint(0, 5, (B, T), generator=generator)
    window = [None, 1, 3][seed % 3]
    where = place(mask.tolist(), positions.tolist(), B=B, T=T)
    allowed = visibility(where, window).allowed
    assert allowed is not None
    assert torch.equal(allowed, brute_force(mask, positions, window))
