"""What an error of a model or a loss is about, and what to do about it: ends of the sentences that say so."""

from __future__ import annotations

from torch import nn

from .. import checks
from ..devices import check_memory

# What PyTorch says -> what it is about, and what to do.
CAUSES = (
    ("saved tensor hooks", "it uses checkpointing", "turn checkpointing off"),
    (
        "setup_context",
        "it calls an autograd.Function without setup_context (as reentrant checkpointing does)",
        "give the function a setup_context and generate_vmap_rule = True, or turn checkpointing off",
    ),
    ("vmap support", "it calls an autograd.Function without a rule for vmap", "set its generate_vmap_rule = True"),
    (
        "data-dependent control flow",
        "it branches on data or calls .item()",
        "write both branches and torch.where in place of them, and F.one_hot as x[..., None] == torch.arange(classes)",
    ),
    (
        "dynamic shape",
        "it picks by a boolean mask or torch.nonzero, so that sizes depend on data",
        "multiply by the mask or use torch.where",
    ),
    ("requires_grad_()", "it takes derivatives in its forward pass", "take them by torch.func.grad"),
    ("data pointer", "it leaves PyTorch, for NumPy say", "write it with PyTorch's operations"),
    ("nested_tensor", "it uses nested tensors", "pad its tensors"),
    ("NestedTensor", "it uses nested tensors", "pad its tensors"),
    ("Sparse", "it uses sparse tensors or gradients", "make them dense (nn.Embedding(sparse=False))"),
    ("DataParallel", "it is wrapped by nn.DataParallel", "give the module inside, model.module"),
    ("ScriptModule", "it is a scripted model", "give the module that it was made of"),
    ("Jitted", "it is a scripted model", "give the module that it was made of"),
    ("inplace", "it writes batched values into a tensor that has none", "put results together by torch.stack or cat"),
    (
        "same randomness",
        "it draws from distributions that it computes (torch.normal, torch.bernoulli, torch.multinomial)",
        "draw numbers that depend on nothing: mean + std * torch.randn_like(mean), torch.rand_like(p) < p",
    ),
    ("forward mode AD", "it calls an autograd.Function without a forward derivative", "give it a jvp"),
    ("forward AD", "one of its operations has no forward derivative", "write it with elementary operations"),
)
TRANSFORMERS = "a sequence classifier of transformers becomes a task by fimoda_lib.huggingface.text_task"


def failure(task: str, part: str, error: Exception, model: nn.Module, row: int | None = None) -> ValueError:
    """What to raise where a model or a loss fails on a part of the data, or on one instance of it."""
    what, advice = cause(error, model)
    which = "instances" if row is None else f"instance {row}"
    return ValueError(
        f"The model or the loss of task '{task}' fails on its {part} {which}{what} ({checks.reason(error)}); "
        f"expected loss(model(inputs), targets) to give one value per instance, for one instance as for many{advice}."
    )


def cause(error: Exception, model: nn.Module) -> tuple[str, str]:
    """What an error of PyTorch's is about and what to do, as ends of clauses; empty where that is not known."""
    check_memory(error)
    of_transformers = any(type(m).__module__.startswith("transformers.") for m in model.modules())
    words = str(error).partition(" is only available for")[0]  # a list of all backends follows
    for said, what, advice in CAUSES:
        if said in words:
            return f": {what}", f"; {TRANSFORMERS if of_transformers else advice}"
    if of_transformers:
        return "", f"; {TRANSFORMERS}"
    recurrent = [type(m).__name__ for m in model.modules() if isinstance(m, nn.RNNBase | nn.RNNCellBase)]
    if recurrent:
        return f": its recurrent layer {recurrent[0]} cannot be batched", "; write its gates with nn.Linear"
    return "", ""


def uncopied(task: str, part: nn.Module, error: Exception) -> ValueError:
    """What to raise where a model, or a loss that is one, cannot be copied."""
    advice = "build it anew"
    for hook in (hook for module in part.modules() for hook in module._forward_pre_hooks.values()):
        old = type(hook).__module__.removeprefix("torch.nn.utils.")
        if old == "prune":
            advice = f"make its pruning final by prune.remove(module, {hook._tensor_name!r})"
        elif old in ("weight_norm", "spectral_norm"):
            advice = f"take nn.utils.parametrizations.{old} in place of nn.utils.{old}"
    return ValueError(
        f"The {type(part).__name__} of task '{task}' cannot be copied ({checks.reason(error)}); expected one that "
        f"holds no tensors of an earlier forward pass, no generators and no open files: {advice}."
    )
