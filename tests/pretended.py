"""An accelerator that is not there: tensors that say they lie on it, held and computed on the CPU.

    python -m tests.pretended [KEY ...]     analyses there against the CPU; 1 if any differs

What fails on a GPU fails here: an operation on tensors of two devices, a draw on the device by a
generator of the CPU, numpy of what was not brought back. What it cannot show: other kernels, their
rounding, speed and memory. For a process of its own: torch is changed for all that runs after.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.utils.backend_registration as registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

NAME = "pretended"
# They bring what lies elsewhere to where it is needed, as on a GPU; of an index only the places.
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
BRINGS = {"aten::copy_", "aten::_to_copy"} | INDEXED


class There(torch.Tensor):
    """A tensor on the device. held: its numbers, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> There:
        about: dict[str, Any] = {"dtype": held.dtype, "layout": held.layout}
        about |= {"strides": held.stride(), "storage_offset": held.storage_offset()}
        where = torch.device(NAME, 0)
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=where, **about)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})

    def tolist(self):
        return self.held.tolist()

    def numpy(self, *_, **__):
        raise TypeError(f"can't convert {NAME} device type tensor to numpy; use Tensor.cpu() first")

    __array__ = numpy


class Pretence(TorchDispatchMode):
    """While it lasts tensors can be made on, and brought to, the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})


def on_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on the tensors held; its results lie where they would."""
    name = func._schema.name
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    require_one_place(name, args, tensors)
    asked = kwargs.get("device")
    result_there = bool(there) if asked is None else on_device(asked)
    if name == "aten::copy_":
        result_there = isinstance(args[0], There)
    generator = kwargs.get("generator")
    if generator is not None and result_there:
        raise RuntimeError(f"{name}: expected a generator of {NAME}, found one of the CPU")
    own, options = tree_map_only(There, lambda x: x.held, (args, kwargs))
    if on_device(options.get("device")):
        options = options | {"device": torch.device("cpu")}
    known = {id(x.held): x for x in there}
    made = func(*own, **options)
    if name == "aten::_local_scalar_dense":
        return made

    def placed(x: torch.Tensor) -> torch.Tensor:
        if id(x) in known:
            return known[id(x)]
        return There(x) if result_there else x

    return tree_map_only(torch.Tensor, placed, made)


def require_one_place(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    """Raises as a GPU does, where only single numbers may lie elsewhere."""
    here = [x for x in tensors if not isinstance(x, There) and x.dim()]
    if not here or not any(isinstance(x, There) for x in tensors):
        return
    if name not in BRINGS:
        shapes = [tuple(x.shape) for x in here]
        raise RuntimeError(f"{name}: tensors on {NAME} and, of shapes {shapes}, on the CPU")
    into_here = name in INDEXED and not isinstance(args[0], There)
    if into_here or ("index_put" in name and any(x is args[2] for x in here)):
        raise RuntimeError(f"{name}: indexed, index or value on another device")


class Backend(registration._DummyBackendModule):
    """What torch asks of a device's module."""

    def get_rng_state(self, device=0):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=0):
        torch.set_rng_state(state)

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def manual_seed_all(self, seed):
        pass

    manual_seed = manual_seed_all

    def _is_in_bad_fork(self):
        return False

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


def install() -> None:
    """Make the device known to torch, and to safetensors."""
    import safetensors.torch

    registration._setup_privateuseone_for_python_backend(NAME, Backend())
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) goes by the pretence
    # Tensors without versions cannot be wrapped.
    torch.inference_mode = lambda mode=True: torch.no_grad()  # type: ignore[assignment]
    read = safetensors.torch.load_file

    def load_file(file, device="cpu"):
        return {name: x.to(device) for name, x in read(file, device="cpu").items()}

    safetensors.torch.load_file = load_file


def main() -> None:
    install()
    os.environ["WORKBENCH_CACHE"] = tempfile.mkdtemp(prefix="workbench-pretended-")
    from benchmarks.analyses import PROMPTS, exact, plain
    from tests.calls import CALLS, Asked, write_pair
    from workbench.forgetting import side_answers

    off = 0
    with tempfile.TemporaryDirectory() as folder:
        pair = write_pair(Path(folder))
        for key in sys.argv[1:] or CALLS:
            own = Asked(PROMPTS)
            wanted = plain(CALLS[key](pair, own, batch_size=4).table)
            side_answers._KEPT.clear()
            try:
                with Pretence():
                    found = plain(CALLS[key](pair, own, batch_size=4, device=NAME).table)
                row = exact(found, wanted)
            except Exception as error:
                row = {"ok": False, "says": f"{type(error).__name__}: {error}"}
            side_answers._KEPT.clear()
            off += not row["ok"]
            print(f"{key}: {'as on the CPU' if row['ok'] else row['says']}", flush=True)
    sys.exit(min(off, 1))


if __name__ == "__main__":
    main()
