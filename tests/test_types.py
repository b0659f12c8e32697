"""Promotion is torch's, for every pair of dtypes, ranks and Python numbers; shapes broadcast."""

import itertools

import pytest

from subquad.ir import DTYPES, IRError, TensorType, symbol
from subquad.ir.types import broadcast, product, promote, scalar_dtype

torch = pytest.importorskip("torch")

TORCH = {
    "bool": torch.bool, "u8": torch.uint8, "i8": torch.int8, "i16": torch.int16, "i32": torch.int32,
    "i64": torch.int64, "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32,
    "f64": torch.float64, "c32": torch.complex32, "c64": torch.complex64, "c128": torch.complex128,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in TORCH.items()}


@pytest.mark.parametrize("ranks", itertools.product((0, 1), repeat=2), ids=str)
def test_promotion_is_torchs(ranks):
    """All pairs of dtypes, tensors and 0-d tensors."""
    wrong = []
    for x, y in itertools.product(TORCH, repeat=2):
        ours = promote(
            *(TensorType(DTYPES[d], (2,) * r) for d, r in zip((x, y), ranks, strict=True))
        )
        theirs = torch.result_type(
            *(torch.empty((2,) * r, dtype=TORCH[d]) for d, r in zip((x, y), ranks, strict=True))
        )
        if ours.name != NAMES[theirs]:
            wrong.append(f"{x} with {y}: {ours}, torch {NAMES[theirs]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("rank", (0, 1))
@pytest.mark.parametrize("number", (True, 3, 2.5))
def test_python_numbers_are_torchs(number, rank):
    """A Python number beside a tensor, of any dtype and rank."""
    for name, dtype in TORCH.items():
        if name == "c32":
            continue  # complex halves have no arithmetic
        type = TensorType(DTYPES[name], (2,) * rank)
        scalar = TensorType(scalar_dtype(number, [type.dtype]), ())
        theirs = torch.result_type(torch.empty((2,) * rank, dtype=dtype), number)
        assert promote(type, scalar).name == NAMES[theirs], (name, number, rank)


def test_three_operands():
    """Promotion of many is not promotion two by two: 0-d operands stay apart."""
    f32, f64, i64 = (DTYPES[n] for n in ("f32", "f64", "i64"))
    types = TensorType(f64, ()), TensorType(i64, (2,)), TensorType(f32, (2,))
    assert {promote(*order) for order in itertools.permutations(types)} == {f32}


def test_no_common_dtype():
    """Opaque bits mix with nothing but themselves."""
    f8 = TensorType(DTYPES["f8e4m3"], (2,))
    assert promote(f8, f8) is DTYPES["f8e4m3"]
    with pytest.raises(IRError, match="no common dtype; cast one"):
        promote(f8, TensorType(DTYPES["f32"], (2,)))


SHAPES = [(), (1,), (3,), (2, 1), (1, 3), (2, 3), (0,), (2, 0), (1, 1, 1), (4, 1, 3), (5, 2, 1)]


def test_broadcast_is_torchs():
    """All pairs and some triples of concrete shapes."""
    for shapes in [*itertools.product(SHAPES, repeat=2), *itertools.combinations(SHAPES, 3)]:
        try:
            wanted = tuple(torch.broadcast_shapes(*shapes))
        except RuntimeError:
            with pytest.raises(IRError, match="do not broadcast"):
                broadcast(*shapes)
        else:
            assert broadcast(*shapes) == wanted, shapes


def test_broadcast_never_guesses():
    """A symbol goes with itself and with 1, with nothing else."""
    n, m = symbol("n"), symbol("m")
    assert broadcast((n, 1), (1, m)) == (n, m) and broadcast((n,), ()) == (n,)
    for other in ((m,), (3,), (n + 1,), (0,)):
        with pytest.raises(IRError):
            broadcast((n,), other)
    assert broadcast() == ()


def test_tensor_type():
    """What a type says of itself."""
    n = symbol("n")
    type = TensorType(DTYPES["bf16"], (2, n, 3))
    assert str(type) == "bf16[2,n,3]" and type.rank == 3
    assert type.size == 6 * n and type.bytes == 12 * n and product(()) == 1
    assert type.with_(shape=[n]).dtype is type.dtype and type.with_(dtype=DTYPES["f32"]) != type
    assert hash(type) == hash(type.with_(shape=(2, symbol("n"), 3)))
