"""A step of fixed shapes compiled ahead of time for inference on a CPU, by AOTInductor, with the weights as they are then.

    step = CompiledStep(module, module.step, x, states)     # takes seconds and a C++ compiler
    if step.fits(x):
        y = step(x, states)                                 # what module.step(x, states) gives; updates the states in place

What lies between the matrix products is fused, and calls cost next to nothing (docs/log.md). In float32 the two agree up to
the order of summation; in bfloat16 the compiled step rounds fewer intermediate results.
"""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from phonograph.errors import ConfigError
from phonograph.nn.packed import fast_path
from phonograph.nn.state import State

__all__ = ["CompiledStep", "CompiledSteps", "Step"]

Step = Callable[[Tensor, "list[Any]"], Tensor]
"""(x, the states in the order the step takes them) -> y; updates the states in place."""


class _Exported(nn.Module):
    """A step whose states are plain tensors."""

    def __init__(self, module: nn.Module, step: Step, states: Sequence[State]) -> None:
        super().__init__()
        self.module = module
        self.step = step
        self.states = states

    def forward(self, x: Tensor, tensors: list[Tensor]) -> Tensor:
        rest = iter(tensors)
        return self.step(x, [state.made_of(rest) for state in self.states])


class CompiledStep:
    """A method of a module, compiled for inputs and states of one shape.

    Args:
        module: in evaluation mode, on a CPU.
        step: its method.
        x, states: such as it will be called with; the states stay as they are.

    Raises:
        ConfigError: torch can't compile here, for want of a C++ compiler as a rule.
    """

    def __init__(self, module: nn.Module, step: Step, x: Tensor, states: Sequence[State]) -> None:
        self._module = module
        self._shape, self._dtype, self._threads = x.shape, x.dtype, torch.get_num_threads()
        with torch.inference_mode(False), torch.no_grad():
            example = torch.zeros_like(x)
            tensors = [torch.zeros_like(tensor) for state in states for tensor in state.tensors()]
            exported = torch.export.export(_Exported(module, step, states), (example, tensors), strict=False)
            self._run = _compile(exported)
        used = {node.name for node in exported.graph.nodes if node.op == "placeholder" and node.users}
        names = [name for node, name in exported.graph_signature.inputs_to_parameters.items() if node in used]
        weights = [module.get_parameter(name.removeprefix("module.")) for name in names]
        self._weights = weights
        self._kept = [weight.detach() for weight in weights]  # so that no later tensor can lie where one of these lay
        self._counting = [weight for weight in weights if not weight.is_inference()]
        self._known = self._weights_now()

    def fits(self, x: Tensor) -> bool:
        """Whether the step may be taken for x: compiled for its shape and this number of threads, with these weights."""
        same = x.shape == self._shape and x.dtype == self._dtype and torch.get_num_threads() == self._threads
        return same and fast_path(x, self._module) and self._weights_now() == self._known

    def __call__(self, x: Tensor, states: Sequence[State]) -> Tensor:
        """The step's result; the states are updated in place."""
        out: Tensor = self._run(x.contiguous(), [tensor for state in states for tensor in state.tensors()])
        return out

    def _weights_now(self) -> list[int]:
        """Numbers that differ once a weight has been changed or replaced."""
        return [weight.data_ptr() for weight in self._weights] + [weight._version for weight in self._counting]


class CompiledSteps:
    """The compiled forms of one method; a copied or pickled module has none."""

    def __init__(self) -> None:
        self._forms: list[CompiledStep] = []

    def __reduce__(self) -> tuple[type["CompiledSteps"], tuple[()]]:
        return CompiledSteps, ()

    def compile(self, module: nn.Module, step: Step, x: Tensor, states: Sequence[State]) -> None:
        """Have a form for x and such states, compiled unless there is one; arguments and errors as of CompiledStep."""
        if self.find(x) is None:
            self._forms.insert(0, CompiledStep(module, step, x, states))

    def find(self, x: Tensor) -> CompiledStep | None:
        """The form for x, if there is one."""
        return next((form for form in self._forms if form.fits(x)), None)


def _compile(exported: torch.export.ExportedProgram) -> Callable[..., Any]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler imports what torch itself calls deprecated
        path = str(Path(folder) / "step.pt2")
        try:
            package = torch._inductor.aoti_compile_and_package(exported, package_path=path, inductor_configs={"freezing": True})
            loaded: Callable[..., Any] = torch._inductor.aoti_load_package(package)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"expected a C++ compiler that torch can use, got {type(error).__name__}: {reason}; install g++ or clang++ "
                "(CXX names another), or go without compiled steps"
            ) from error
    return loaded
