"""Loads a checkpoint that molae converted in transformers (5 or later), with trust_remote_code:

    AutoModelForCausalLM.from_pretrained("./converted", trust_remote_code=True)

The decoder is the source's own class; only the routed experts are replaced. Expert i of group g is
`W_gate[i] = gate_a[i] gate_b`, `W_up[i] = up_a[i] up_b`, `W_down[i] = down_b down_a[i]`, and is computed in these factors:
see https://arxiv.org/abs/2503.23100. This is a reference, not a fast path: molae itself runs the format natively.
"""

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from .configuration_molae import MolaeConfig


class LatentGroup(nn.Module):
    """The factors of the experts that share a latent space, with the sizes found in the file."""

    def __init__(self, shapes):
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape)))

    def shared(self, operator):
        """B of an operator; gate and up may have one in common."""
        return getattr(self, f"{operator}_b") if hasattr(self, f"{operator}_b") else self.gate_up_b


class LatentExperts(nn.Module):
    """In place of a layer's experts: the same call, (tokens, ids [T, K], weights [T, K]) to tokens."""

    def __init__(self, dense, groups, partition, operators):
        super().__init__()
        self.act_fn = dense.act_fn
        self.partition = partition
        self.operators = frozenset(operators)
        # The groups are the MoE module's own, where their names put them.
        object.__setattr__(self, "groups", groups)
        if "gate" not in self.operators:
            self.gate_up_proj = nn.Parameter(torch.empty_like(dense.gate_up_proj))
        if "down" not in self.operators:
            self.down_proj = nn.Parameter(torch.empty_like(dense.down_proj))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        out = torch.zeros_like(hidden_states)
        for group, members in zip(self.groups, self.partition):
            self._add_group(out, group, members, hidden_states, top_k_index, top_k_weights)
        return out

    def _add_group(self, out, group, members, hidden_states, top_k_index, top_k_weights):
        ids = torch.tensor(members, device=top_k_index.device)
        tokens = torch.isin(top_k_index, ids).any(dim=-1).nonzero()[:, 0]
        if len(tokens) == 0:
            return
        x = hidden_states[tokens]
        # Into the latent space once for all experts of the group, and out of it once.
        z = {name: linear(x, group.shared(name)) for name in ("gate", "up") if name in self.operators}
        size = group.down_b.shape[1] if "down" in self.operators else hidden_states.shape[1]
        latent = x.new_zeros(len(tokens), size)
        for position, expert in enumerate(members):
            rows, slots = (top_k_index[tokens] == expert).nonzero(as_tuple=True)
            if len(rows) == 0:
                continue
            if z:
                gate = linear(z["gate"][rows], group.gate_a[position])
                up = linear(z["up"][rows], group.up_a[position])
            else:
                gate, up = linear(x[rows], self.gate_up_proj[expert]).chunk(2, dim=-1)
            down = group.down_a[position] if "down" in self.operators else self.down_proj[expert]
            y = linear(self.act_fn(gate) * up, down) * top_k_weights[tokens[rows], slots, None]
            latent.index_add_(0, rows, y.to(latent.dtype))
        y = linear(latent, group.down_b) if "down" in self.operators else latent
        out.index_add_(0, tokens, y.to(out.dtype))


def _moe_of(layer):
    """The one child of a decoder layer that has experts."""
    return next(child for child in layer.children() if hasattr(child, "experts"))


def _group_shapes(config, layer, count):
    """Factor shapes of the groups of a layer, from the sizes that `from_pretrained` read off the files."""
    return [config.molae_shapes[(layer, group)] for group in range(count)]


def _replace_experts(model, config):
    operators = config.molae["operators"]
    if ("gate" in operators) != ("up" in operators):
        raise NotImplementedError("gate and up are factored together or not at all in transformers: use --format dense")
    for index, partition in config.molae["groups"].items():
        moe = _moe_of(model.model.layers[int(index)])
        shapes = _group_shapes(config, int(index), len(partition))
        moe.latent_experts = nn.ModuleList(LatentGroup(each) for each in shapes)
        moe.experts = LatentExperts(moe.experts, moe.latent_experts, partition, operators)


def _latent_class(base):
    """The source's class with latent experts. Its weights load as the source's do."""

    def __init__(self, config):
        base.__init__(self, config)
        _replace_experts(self, config)

    return type(f"Molae{base.__name__}", (base,), {"__init__": __init__, "__module__": __name__})


def _read_shapes(path):
    """(layer, group) to the shapes of its factors, read off the headers of the safetensors files."""
    from pathlib import Path

    from safetensors import safe_open

    shapes = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():
                prefix, found, rest = name.partition(".latent_experts.")
                if not found:
                    continue
                layer = int(prefix.split(".layers.")[1].split(".")[0])
                group, factor = rest.split(".")
                shapes.setdefault((layer, int(group)), {})[factor] = tensors.get_slice(name).get_shape()
    return shapes


class MolaeForCausalLM(PreTrainedModel):
    """Only a door: `from_pretrained` gives a model of the source's class, with latent experts."""

    config_class = MolaeConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        from pathlib import Path

        path = Path(pretrained_model_name_or_path)
        if not path.is_dir():
            from huggingface_hub import snapshot_download

            path = Path(snapshot_download(str(pretrained_model_name_or_path), revision=kwargs.pop("revision", None)))
        if not isinstance(config, MolaeConfig):
            config = MolaeConfig.from_pretrained(path)
        base = config.base_config()
        # Not part of the config that anyone saves: what the model is built with.
        object.__setattr__(base, "molae_shapes", _read_shapes(path))
        model = _latent_class(MODEL_FOR_CAUSAL_LM_MAPPING[type(base)])
        for door_key in ("trust_remote_code", "code_revision"):
            kwargs.pop(door_key, None)
        return model.from_pretrained(path, *args, config=base, **kwargs)
