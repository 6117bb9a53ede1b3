"""Caduceus evaluated naively, and random folders of its format: what the reader of such folders is compared with.

Written from the description of the format alone: loops over positions and taps, real flips, fp64. Nothing here comes
from the package under test.
"""

import json

import torch
from safetensors.torch import save_file

IDS = {
    "A": 7,
    "C": 8,
    "G": 9,
    "T": 10,
    "N": 11,
    "[MASK]": 3,
    "[CLS]": 0,
    "[SEP]": 1,
    "[BOS]": 2,
    "[PAD]": 4,
    "[UNK]": 6,
}
COMPLEMENT = [0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11, 12, 13, 14, 15]
ROWS = 16


def rc(x):
    """Reverse complement of (length, channels)."""
    return x.flip(0, 1)


def norm(x, weight, epsilon):
    """RMSNorm of (length, channels)."""
    return x / torch.sqrt((x * x).mean(1, keepdim=True) + epsilon) * weight


def mamba(x, w):
    """One direction: (length, d_model) → (length, d_model); `w` maps names of parameters to fp64 numbers."""
    length = len(x)
    channels, state = w["A_log"].shape
    inputs = torch.stack([w["in_proj.weight"] @ row for row in x])
    u, z = inputs[:, :channels], inputs[:, channels:]
    taps = w["conv1d.weight"][:, 0]
    convolved = []
    for t in range(length):
        total = w["conv1d.bias"].clone()
        for back in range(taps.shape[1]):
            if t - back >= 0:
                total = total + taps[:, taps.shape[1] - 1 - back] * u[t - back]
        convolved.append(total * torch.sigmoid(total))
    rank = w["dt_proj.weight"].shape[1]
    A, h, outputs = -torch.exp(w["A_log"]), torch.zeros(channels, state, dtype=x.dtype), []
    for t in range(length):
        maps = w["x_proj.weight"] @ convolved[t]
        dt = torch.log1p(torch.exp(w["dt_proj.weight"] @ maps[:rank] + w["dt_proj.bias"]))
        B, C = maps[rank : rank + state], maps[rank + state :]
        h = torch.exp(dt[:, None] * A) * h + (dt * convolved[t])[:, None] * B[None]
        y = h @ C + w["D"] * convolved[t]
        outputs.append(w["out_proj.weight"] @ (y * z[t] * torch.sigmoid(z[t])))
    return torch.stack(outputs)


def both_directions(x, forwards, backwards):
    return mamba(x, forwards) + mamba(x.flip(0), backwards).flip(0)


def directions(tensors, prefix):
    """Parameters of both directions; a projection that the file holds once serves both."""
    found = {}
    for direction in ("mamba_fwd", "mamba_rev"):
        start = f"{prefix}.{direction}."
        found[direction] = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
    return found["mamba_fwd"], found["mamba_fwd"] | found["mamba_rev"]


def logits(tensors, config, ids):
    """(length,) of Caduceus's token ids → (length, ROWS) in fp64."""
    tensors = {name: value.double() for name, value in tensors.items() if value.is_floating_point()}
    return (_equivariant if config["rcps"] else _plain)(tensors, config, ids)


def _plain(tensors, config, ids):
    x, residual = tensors["caduceus.backbone.embeddings.word_embeddings.weight"][ids], 0
    for layer in range(config["n_layer"]):
        prefix = f"caduceus.backbone.layers.{layer}"
        residual = x + residual
        x = norm(residual, tensors[f"{prefix}.norm.weight"], config["norm_epsilon"])
        x = both_directions(x, *directions(tensors, f"{prefix}.mixer"))
    x = norm(x + residual, tensors["caduceus.backbone.norm_f.weight"], config["norm_epsilon"])
    return x @ tensors["lm_head.weight"].T


def _equivariant(tensors, config, ids):
    rows = tensors["caduceus.backbone.embeddings.word_embeddings.embedding.weight"]
    half = rows.shape[1]
    complement = torch.tensor(COMPLEMENT)
    x = torch.cat([rows[ids], rows[complement[ids.flip(0)]].flip(0, 1)], 1)
    residual = torch.zeros_like(x)
    for layer in range(config["n_layer"]):
        prefix = f"caduceus.backbone.layers.{layer}"
        fused = config["fused_add_norm"]
        weight = tensors[f"{prefix}.norm.weight" if fused else f"{prefix}.norm.submodule.weight"]
        residual = x + residual
        if fused:  # the released kernels' path exchanges the halves
            residual = torch.cat([residual[:, half:], residual[:, :half]], 1)
        x = _on_both_strands(lambda part: norm(part, weight, config["norm_epsilon"]), residual)  # noqa: B023
        forwards, backwards = directions(tensors, f"{prefix}.mixer.submodule")
        x = _on_both_strands(lambda part: both_directions(part, forwards, backwards), x)  # noqa: B023
    fused_name, plain_name = "caduceus.backbone.norm_f.weight", "caduceus.backbone.norm_f.submodule.weight"
    weight = tensors[fused_name if fused_name in tensors else plain_name]
    x = _on_both_strands(lambda part: norm(part, weight, config["norm_epsilon"]), x + residual)
    head = tensors["lm_head.lm_head.weight"]
    return x[:, :half] @ head.T + x[:, half:].flip(1) @ head[complement].T


def _on_both_strands(function, x):
    half = x.shape[1] // 2
    return torch.cat([function(x[:, :half]), rc(function(rc(x[:, half:])))], 1)


def write_folder(folder, *, rcps, fused=True, d_model=8, n_layer=3, state=4, seed=0, drop=(), **config):
    """A folder of random weights as the library saves one; returns its tensors and config.json."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, scale=0.5):
        return torch.randn(*shape, generator=generator) * scale

    channels, rank, width = 2 * d_model, -(-d_model // 16), 4
    tensors = {}
    core = "caduceus.backbone"
    if rcps:
        tensors[f"{core}.embeddings.word_embeddings.embedding.weight"] = random(ROWS, d_model)
        tensors[f"{core}.embeddings.word_embeddings.complement_map"] = torch.tensor(COMPLEMENT)
        tensors["lm_head.lm_head.weight"] = tensors[f"{core}.embeddings.word_embeddings.embedding.weight"].clone()
        tensors["lm_head.complement_map"] = torch.tensor(COMPLEMENT)
    else:
        tensors[f"{core}.embeddings.word_embeddings.weight"] = random(ROWS, d_model)
        tensors["lm_head.weight"] = tensors[f"{core}.embeddings.word_embeddings.weight"].clone()
    inner_norm = ".submodule" if rcps and not fused else ""
    for layer in range(n_layer):
        tensors[f"{core}.layers.{layer}.norm{inner_norm}.weight"] = 1 + random(d_model, scale=0.2)
        prefix = f"{core}.layers.{layer}.mixer{'.submodule' if rcps else ''}"
        in_proj, out_proj = random(2 * channels, d_model), random(d_model, channels)
        for direction in ("mamba_fwd", "mamba_rev"):
            tensors |= {
                f"{prefix}.{direction}.in_proj.weight": in_proj.clone(),
                f"{prefix}.{direction}.out_proj.weight": out_proj.clone(),
                f"{prefix}.{direction}.conv1d.weight": random(channels, 1, width),
                f"{prefix}.{direction}.conv1d.bias": random(channels),
                f"{prefix}.{direction}.x_proj.weight": random(rank + 2 * state, channels),
                f"{prefix}.{direction}.dt_proj.weight": random(channels, rank),
                f"{prefix}.{direction}.dt_proj.bias": random(channels) - 2,
                f"{prefix}.{direction}.A_log": random(channels, state),
                f"{prefix}.{direction}.D": random(channels),
            }
    tensors[f"{core}.norm_f{inner_norm}.weight"] = 1 + random(d_model, scale=0.2)
    said = {
        "model_type": "caduceus",
        "architectures": ["CaduceusForMaskedLM"],
        "auto_map": {"AutoConfig": "configuration_caduceus.CaduceusConfig"},
        "d_model": d_model,
        "n_layer": n_layer,
        "vocab_size": 12,
        "pad_vocab_size_multiple": 8,
        "ssm_cfg": {"d_state": state, "d_conv": width, "expand": 2, "dt_rank": "auto", "bias": False, "conv_bias": True,
                    "dt_init": "random", "dt_scale": 1.0, "use_fast_path": True},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": fused,
        "norm_epsilon": 1e-5,
        "bidirectional": True,
        "bidirectional_strategy": "add",
        "bidirectional_weight_tie": True,
        "rcps": rcps,
        "complement_map": {str(i): c for i, c in enumerate(COMPLEMENT)},
        "initializer_cfg": {"initializer_range": 0.02, "rescale_prenorm_residual": True, "n_residuals_per_layer": 1},
        "transformers_version": "4.38.1",
        "torch_dtype": "float32",
    } | config  # fmt: skip
    folder.mkdir(parents=True)
    save_file({k: v for k, v in tensors.items() if k not in drop}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(said))
    return tensors, said
