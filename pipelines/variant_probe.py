"""A linear probe of variants: ridge logistic regression on frozen features of both alleles, by gene.

On ClinVar, or without it on the variants of one's own file, it is cross-fitted, each fold of genes by the others; on
other sets it is fitted on all of ClinVar's genes but those of the set. So no variant is scored by what was fitted on
its own gene. The penalty is fixed beforehand.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from variant_sets import OWN, VariantSet

from dnamamba.finetuning.tasks.examples import pad
from dnamamba.finetuning.tasks.variants import window
from dnamamba.genome.alleles import Alleles
from dnamamba.genome.store import TokenStore
from dnamamba.inference.load import Inference
from dnamamba.model.alleles import allele_features

FOLDS = 5
PENALTY = 1e-2
"""Half of it times the squared norm of the weights is added to the mean log loss, of features scaled to variance 1."""
STEPS = 100
FITTED_ON = ("clinvar", OWN)
"""The first of these that is there"""


def fitted_on(names: Iterable[str]) -> str | None:
    """The set that a probe of all these is fitted on, if one of them can be."""
    return next((name for name in FITTED_ON if name in names), None)


@torch.inference_mode()
def features(inference: Inference, store: TokenStore, alleles: Alleles, length: int, batch: int) -> Tensor:
    """(alleles, features) fp32 on the CPU: `allele_features` of windows of `length` bases on the forward strand; NaN
    where an allele cannot be scored."""
    usable = np.flatnonzero(alleles.reason == 0)
    found: Tensor | None = None
    for first in range(0, len(usable), batch):
        rows = usable[first : first + batch]
        tokens, lengths = pad([window(store, alleles, int(row), length) for row in rows])
        on_device = (torch.from_numpy(array).to(inference.device) for array in (tokens, lengths))
        with inference.autocast():
            part = allele_features(inference.model.backbone, *on_device).float().cpu()
        if found is None:
            found = torch.full((len(alleles), part.shape[1]), torch.nan)
        found[torch.from_numpy(rows)] = part
    assert found is not None
    return found


def probe_scores(
    sets: dict[str, VariantSet], described: dict[str, Tensor], device: torch.device
) -> dict[str, np.ndarray]:
    """Set → (variants,) log odds of being harmful; of sets that can be probed."""
    if (fitted := fitted_on(sets)) is None:
        return {}
    known = sets[fitted]
    assert known.label is not None
    x = described[fitted].to(device)
    usable = torch.isfinite(x).all(1).cpu().numpy()
    fold = np.array([int(hashlib.sha256(gene.encode()).hexdigest(), 16) % FOLDS for gene in known.group.tolist()])
    scores = {fitted: np.full(len(fold), np.nan)}
    for held in range(FOLDS):
        train, test = usable & (fold != held), usable & (fold == held)
        if test.any():
            scores[fitted][test] = _fit(x[train], known.label[train])(x[test])
    for name, variants in sets.items():
        if name != fitted:
            train = usable & ~np.isin(known.group, variants.genes)
            other = described[name].to(device)
            score = _fit(x[train], known.label[train])(torch.nan_to_num(other))
            scores[name] = np.where(torch.isfinite(other).all(1).cpu().numpy(), score, np.nan)
    return scores


def _fit(x: Tensor, label: np.ndarray):
    """Logistic regression by L-BFGS; gives a function from features to log odds."""
    mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)
    scaled, y = (x - mean) / spread, torch.from_numpy(label.astype(np.float32)).to(x.device)
    weights = torch.zeros(x.shape[1] + 1, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = scaled @ weights[:-1] + weights[-1]
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, y)
        value = value + PENALTY / 2 * weights[:-1].square().sum()
        value.backward()
        return value

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(loss)
    fitted = weights.detach()
    return lambda new: (((new - mean) / spread) @ fitted[:-1] + fitted[-1]).double().cpu().numpy()
