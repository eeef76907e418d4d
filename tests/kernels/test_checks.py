"""Every refusal is one clear line, and comes before any tensor has changed."""

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from sffkernels import Init, interpolate_

NORMAL = Init.normal()


@dataclass
class Call:
    """A valid call on two tensors, which one field at a time makes invalid."""

    a: Any = 0.5
    tensors: Any = field(default_factory=lambda: [torch.ones(4), torch.ones(2, 3)])
    keywords: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> None:
        noise = {"init": [NORMAL, NORMAL], "c": 0.5, "names": ["x", "y"]}
        interpolate_(self.tensors, self.a, **{**noise, **self.keywords})


def call(**keywords: Any) -> Call:
    return Call(keywords=keywords)


def other(*tensors: Any) -> Call:
    return Call(keywords={"other": list(tensors), "b": 0.5})


def aliases() -> Call:
    tensor = torch.ones(4)
    return Call(tensors=[tensor, tensor.view(2, 2)])


def overlapping() -> Call:
    flat = torch.ones(10)
    return Call(tensors=[flat[:6], flat[5:]])


def overlapping_columns() -> Call:
    matrix = torch.ones(4, 6)
    return Call(tensors=[matrix[:, :3], matrix[:, 2:]])


def other_is_target() -> Call:
    tensors = [torch.ones(4), torch.ones(2, 3)]
    return Call(tensors=tensors, keywords={"other": [torch.ones(4), tensors[1]], "b": 0.5})


def inference() -> Call:
    with torch.inference_mode():
        return Call(tensors=[torch.ones(4), torch.ones(2)])


def second(tensor: Any) -> Call:
    return Call(tensors=[torch.ones(4), tensor])


CASES = {
    "valid call": (call(), None),
    "valid call with other": (other(torch.ones(4), torch.ones(2, 3)), None),
    "a is NaN": (Call(a=math.nan), "a must be finite"),
    "a is infinite": (Call(a=-math.inf), "a must be finite"),
    "a is a NaN tensor": (Call(a=torch.tensor(math.nan)), "a must be finite"),
    "a is a vector": (Call(a=torch.ones(1)), "a must be a number or a 0-dim tensor"),
    "a is a string": (Call(a="0.5"), "a must be a number"),
    "a is a bool": (Call(a=True), "a must be a number"),
    "a is beyond float32": (Call(a=1e39), "within the range of float32"),
    "b is NaN": (call(b=math.nan), "b must be finite"),
    "c is infinite": (call(c=math.inf), "c must be finite"),
    "b without other": (call(b=0.5), "needs other"),
    "no init": (call(init=None), "needs init"),
    "no names": (call(names=None), "needs names"),
    "short init": (call(init=[NORMAL]), "init has 1 entries for 2 tensors"),
    "short names": (call(names=["x"]), "names has 1 entries for 2 tensors"),
    "long other": (other(*[torch.ones(4)] * 3), "other has 3 entries for 2 tensors"),
    "names is a string": (call(names="xy"), "names must be a list or a tuple"),
    "one bare init": (call(init=NORMAL), "init must be a list or a tuple"),
    "tensors is a tensor": (Call(tensors=torch.ones(2, 4)), "tensors must be a list or a tuple"),
    "twice one name": (call(names=["x", "x"]), "'x' occurs twice"),
    "a name is no string": (call(names=["x", 1]), r"names\[1\] must be a string"),
    "an init is a string": (call(init=[NORMAL, "normal"]), r"init\[1\] must be an Init"),
    "bad seed": (call(seed=-1), "seed must lie"),
    "not a tensor": (second([1.0]), r"tensors\[1\] must be a tensor"),
    "integers": (second(torch.ones(4, dtype=torch.int64)), r"tensors\[1\] has dtype torch.int64"),
    "complex": (second(torch.ones(4, dtype=torch.complex64)), "allowed are float32"),
    "sparse": (second(torch.eye(3).to_sparse()), "must be dense"),
    "meta": (second(torch.ones(3, device="meta")), "must be dense and hold data"),
    "expanded": (second(torch.ones(1).expand(3)), r"tensors\[1\] has elements that share memory"),
    "unfolded": (second(torch.ones(9).unfold(0, 3, 1)), "has elements that share memory"),
    "inference tensors": (inference(), "inference mode"),
    "one tensor twice": (aliases(), r"tensors\[1\] shares memory with tensors\[0\]"),
    "overlapping ranges": (overlapping(), r"tensors\[1\] shares memory with tensors\[0\]"),
    "overlapping columns": (overlapping_columns(), "shares memory"),
    "other is a target": (other_is_target(), r"other\[1\] shares memory"),
    "other's shape": (other(torch.ones(4), torch.ones(3, 2)), r"other\[1\] has shape \(3, 2\)"),
    "other broadcasts": (other(torch.ones(1), torch.ones(2, 3)), r"other\[0\] has shape \(1,\)"),
    "other's dtype": (other(torch.ones(4), torch.ones(2, 3).int()), r"other\[1\] has dtype"),
    "other's device": (
        other(torch.ones(4), torch.ones(2, 3, device="meta")),
        r"other\[1\] must be",
    ),
}


def contents(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.is_meta:
        return None
    return value.to_dense().tolist()


@pytest.mark.parametrize("label", [label for label in CASES if label.startswith("valid")])
def test_the_calls_that_the_cases_are_derived_from_work(label):
    made = CASES[label][0]
    made()
    assert not torch.equal(made.tensors[0], torch.ones(4))


@pytest.mark.parametrize("label", [label for label in CASES if not label.startswith("valid")])
def test_a_bad_argument_is_named_and_nothing_is_written(label):
    made, message = CASES[label]
    before = [contents(one) for one in made.tensors]
    with pytest.raises(ValueError, match=message) as caught:
        made()
    assert "\n" not in str(caught.value)
    assert [contents(one) for one in made.tensors] == before


def test_two_others_may_be_the_same_tensor():
    tensors, shared = [torch.ones(4), torch.ones(4)], torch.full((4,), 3.0)
    interpolate_(tensors, 0.5, other=[shared, shared], b=0.5)
    assert torch.equal(torch.stack(tensors), torch.full((2, 4), 2.0))


def test_an_expanded_other_is_read_as_what_it_shows():
    theta = torch.ones(2, 3)
    interpolate_([theta], 0.5, other=[torch.tensor([[1.0], [3.0]]).expand(2, 3)], b=0.5)
    assert torch.equal(theta, torch.tensor([[1.0] * 3, [2.0] * 3]))
