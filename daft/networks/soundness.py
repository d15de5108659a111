"""Whether weights are numbers that a network can compute with."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from daft.batchnorm import batchnorm_layers
from daft.common.errors import UserError, join_first


def require(
    network: nn.Module, state: Mapping[str, Tensor], what: str, names: Mapping[str, str] | None = None
) -> None:
    """Raise UserError, which names `what` and the tensors, for values that no network computes with.

    state: tensors by the network's names, of its shapes. names: what messages call them, if not so.
    """
    if found := faults(network, state, names):
        count = f"{len(found)} tensors" if len(found) > 1 else "a tensor"
        raise UserError(
            f"{what} has {count} that no network can compute with: {join_first(found)}; "
            "take weights from before they were spoiled"
        )


def require_own(network: nn.Module, state: Mapping[str, Tensor], *, finite: bool = True) -> None:
    """Raise ValueError unless tensors are those of the network's state dict, by name and shape.

    finite: and have values that it computes with.
    """
    if {n: t.shape for n, t in state.items()} != {n: t.shape for n, t in network.state_dict().items()}:
        raise ValueError("they are of another network")
    # A rate that is far too large leaves an infinite variance, with which the network still computes.
    faulty = _faults(network, state, infinite_is_wrong=False) if finite else ()
    if found := [f"{name} ({fault})" for name, fault in faulty]:
        raise ValueError(f"no network can compute with {join_first(found)}")


def faults(
    network: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str] | None = None
) -> list[str]:
    """The tensors with such values, each with what is wrong; arguments as those of `require`."""
    return [f"{(names or {}).get(name, name)} ({fault})" for name, fault in _faults(network, state)]


def _faults(
    network: nn.Module, state: Mapping[str, Tensor], *, infinite_is_wrong: bool = True
) -> Iterator[tuple[str, str]]:
    expected = network.state_dict()
    finite = {name for name, _ in network.named_parameters()}
    variances = {f"{layer}.running_var".lstrip(".") for layer in batchnorm_layers(network)}
    finite |= variances | {f"{layer}.running_mean".lstrip(".") for layer in batchnorm_layers(network)}
    for name, tensor in state.items():
        if not expected[name].is_floating_point():
            continue
        values = tensor.to(expected[name].dtype)  # too large a number becomes infinite here
        strict = infinite_is_wrong and name in finite  # a mask may be -inf
        wrong = ~values.isfinite() if strict else values.isnan()
        if wrong.any():
            kind = "NaN" if values.isnan().any() else "infinite"
            yield name, f"{int(wrong.sum())} of {wrong.numel()} {kind}"
        elif name in variances and (values < 0).any():
            yield name, f"{int((values < 0).sum())} of {values.numel()} negative"
