"""What a language model adds to a classifier of variants that knows the genes' annotation.

    python pipelines/model_on_annotation.py prepare --data DATA --out task.npz [--length 512]
    python pipelines/model_on_annotation.py embed --data DATA --task task.npz --checkpoint DIR --out lm.npz
    python pipelines/model_on_annotation.py fit --task task.npz --embedded lm.npz --out DIR [--scores FILE]
    python pipelines/model_on_annotation.py draw --results DIR/results.json --alone FILE --out calibration.png

`prepare` builds the task as `dnamamba finetune --task variants --annotation` does, with its held-out genes, and keeps
the annotation's features, labels and groups. `embed` describes each variant by a frozen model, on both strands, and
keeps the first principal components of that (of the training variants, without their labels). It needs no
scikit-learn. `fit` trains boosted trees on the annotation's features alone, on these with what the model says, and on
the model alone; each is chosen on dev. The test genes are read once for each. What the model adds is the difference of
AUROC, with its interval from resampling genes. `draw` makes a reliability picture: of --results, and of missense
variants from the results.json of `annotated_variants.py` (--alone).
"""

import argparse
import json
from pathlib import Path

import numpy as np

COMPONENTS = 32
AT_ONCE = 256
STRANDS = ("forward", "reverse")
SPLITS = ("train", "dev", "test")
PARTS = ("llr", "at", "after")
"""Of zero-shot scores"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "embed", "fit", "draw"])
    parser.add_argument("--data", type=Path, help="prepare, embed")
    parser.add_argument("--task", type=Path, help="embed, fit: what prepare wrote")
    parser.add_argument("--checkpoint", type=Path, help="embed")
    parser.add_argument("--embedded", type=Path, help="fit: what embed wrote")
    parser.add_argument("--scores", type=Path, help="fit: ClinVar's of variant_benchmarks.py, of the same model")
    parser.add_argument("--results", type=Path, help="draw: what fit wrote")
    parser.add_argument("--alone", type=Path, help="draw: what annotated_variants.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--length", type=int, default=512, help="prepare, embed: bases of a window")
    parser.add_argument("--limit", type=int, help="embed: so many variants of each split")
    options = parser.parse_args()
    {"prepare": prepare, "embed": embed, "fit": fit, "draw": draw}[options.what](options)


def prepare(options: argparse.Namespace) -> None:
    from annotated_variants import genomes, write_gtf
    from variant_sets import clinvar

    from dnamamba.finetuning.resolve import resolve
    from dnamamba.finetuning.settings import FinetuneSettings
    from dnamamba.finetuning.tasks import variants
    from dnamamba.genome.alleles import check
    from dnamamba.genome.genes import read_genes
    from dnamamba.genome.store import open_genome
    from dnamamba.genome.variant_features import FEATURES, variant_features

    annotation = write_gtf(options.data, options.out.with_suffix(".gtf"))
    settings = FinetuneSettings(
        task="variants",
        variants=options.data / "clinvar_2017" / "clinvar_labelled_snv.tsv.gz",
        genome=genomes(options.data),
        annotation=annotation,
        label_columns=["binary"],
        split_by="gene_filled",
        length=options.length,
        checkpoint="none",
        accelerator="cpu",
    )
    task = variants.build(resolve(settings))
    table = clinvar(options.data)
    assert table.label is not None and table.consequence is not None
    names = table.records.contigs
    row_of = {
        (names[contig].partition("|")[0].removeprefix("chr"), start, alt): row
        for row, (contig, start, alt) in enumerate(
            zip(table.records.contig.tolist(), table.records.start.tolist(), table.records.alt, strict=True)
        )
    }
    store = open_genome(genomes(options.data))
    alleles = check(table.records, store, options.length // 2).alleles
    features = variant_features(store, read_genes(annotation, store), alleles)
    kept: dict[str, np.ndarray] = {"features": np.array(FEATURES)}
    for split, examples in (
        ("train", task.train.examples),
        ("dev", task.dev),
        ("test", task.test.read({"by": "none"})),
    ):
        origins = examples.origins
        rows = np.array([row_of[o.contig.partition("|")[0], o.start, o.variant[2]] for o in origins])
        assert (table.label[rows] == (examples.labels == 1)).all()
        kept |= {f"{split}_rows": rows, f"{split}_labels": examples.labels, f"{split}_annotation": features[rows]}
        kept |= {f"{split}_group": np.array([origin.group for origin in origins])}
        kept |= {f"{split}_missense": np.char.find(table.consequence[rows], "missense") >= 0}
    np.savez_compressed(options.out, **kept)
    print({name: value.shape for name, value in kept.items()})


def embed(options: argparse.Namespace) -> None:
    import torch
    from variant_sets import clinvar

    from dnamamba.alphabet import reverse_complement
    from dnamamba.finetuning.tasks.examples import pad
    from dnamamba.finetuning.tasks.variants import window
    from dnamamba.genome.alleles import check
    from dnamamba.genome.store import open_genome
    from dnamamba.inference.load import load_for_inference
    from dnamamba.model.alleles import allele_features

    table = clinvar(options.data)
    store = open_genome(table.genomes, options.out.parent / "clinvar.dnamamba")
    alleles = check(table.records, store, options.length // 2).alleles
    inference = load_for_inference(options.checkpoint, "auto", "fp32")
    with np.load(options.task) as file:
        rows = {split: file[f"{split}_rows"][: options.limit] for split in SPLITS}
    described = {}
    with torch.inference_mode():
        for split, wanted in rows.items():
            parts = []
            for first in range(0, len(wanted), AT_ONCE):
                windows = [window(store, alleles, int(row), options.length) for row in wanted[first : first + AT_ONCE]]
                both = []
                for strand in STRANDS:
                    turned = windows if strand == "forward" else [reverse_complement(each) for each in windows]
                    tokens, lengths = (torch.from_numpy(array).to(inference.device) for array in pad(turned))
                    both.append(allele_features(inference.model.backbone, tokens, lengths).float())
                parts.append(torch.cat(both, 1))
            described[split] = torch.cat(parts)
            print(split, tuple(described[split].shape), flush=True)
    mean, spread = described["train"].mean(0), described["train"].std(0).clamp(min=1e-6)
    scaled = {split: (values - mean) / spread for split, values in described.items()}
    values, vectors = torch.linalg.eigh(scaled["train"].T.double() @ scaled["train"].double())
    axes = vectors[:, values.argsort(descending=True)[:COMPONENTS]].float()
    width, directions = described["train"].shape[1] // len(STRANDS), 3 * inference.model.config.d_model
    numbers = [column for of in range(len(STRANDS)) for column in range(of * width + directions, (of + 1) * width)]
    kept = {f"{split}_components": (each @ axes).half().cpu().numpy() for split, each in scaled.items()}
    kept |= {f"{split}_numbers": each[:, numbers].half().cpu().numpy() for split, each in described.items()}
    explained = (values.flip(0)[:COMPONENTS] / values.sum()).float().cpu().numpy()
    np.savez_compressed(options.out, explained=explained, **kept)


def known(task: dict[str, np.ndarray], model: dict[str, np.ndarray], split: str, which: str) -> np.ndarray:
    """(variants, features): of the annotation, the model, or both."""
    parts = {"annotation": task[f"{split}_annotation"], "model": model[split]}
    return np.hstack([part for name, part in parts.items() if which in (name, "both")])


def fit(options: argparse.Namespace) -> None:
    from dnamamba.finetuning.baselines.trees import fit_trees
    from dnamamba.finetuning.tasks.variant_report import calibration, gained, ranking
    from dnamamba.outputs import write_atomically

    with np.load(options.task) as file:
        task = {name: file[name] for name in file.files}
    with np.load(options.embedded) as file:
        model = {
            split: np.hstack([file[f"{split}_{what}"] for what in ("components", "numbers")]).astype(np.float64)
            for split in SPLITS
        }
    if options.scores is not None:
        with np.load(options.scores) as file:
            zero_shot = np.column_stack([file[name] for name in PARTS]).astype(np.float64)
        model = {split: np.hstack((each, zero_shot[task[f"{split}_rows"]])) for split, each in model.items()}
    names = {"annotation": tuple(task["features"].tolist())}
    names["model"] = tuple(f"model_{number}" for number in range(model["train"].shape[1]))
    names["both"] = names["annotation"] + names["model"]
    positive, group, missense = task["test_labels"] == 1, task["test_group"], task["test_missense"]
    found: dict[str, object] = {}
    logits: dict[str, np.ndarray] = {}
    for which in names:
        x = {split: known(task, model, split, which) for split in SPLITS}
        fitted = fit_trees(names[which], x["train"], task["train_labels"], x["dev"], task["dev_labels"])
        logits[which] = fitted.trees.logits(x["test"])
        probability = fitted.trees.probabilities(x["test"])
        found[which] = {
            "all": ranking(positive, probability, group),
            "missense": ranking(positive[missense], probability[missense], group[missense]),
            "calibration": calibration(positive, probability),
            "chosen": fitted.chosen,
            "dev_loss": fitted.dev_loss,
        }
    found["model_adds"] = {
        name: gained(positive[rows], logits["annotation"][rows], logits["both"][rows], group[rows])
        for name, rows in (("all", np.ones(len(positive), bool)), ("missense", missense))
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "results.json", json.dumps(found, indent=1) + "\n")
    np.savez_compressed(options.out / "test.npz", labels=positive, group=group, missense=missense, **logits)
    print(json.dumps(found["model_adds"], indent=1))


def draw(options: argparse.Namespace) -> None:
    from dnamamba.pictures.calibration import calibrations, plot_calibration

    fitted, alone = (json.loads(path.read_text("utf-8")) for path in (options.results, options.alone))
    predictors = {
        "annotation": fitted["annotation"]["calibration"],
        "annotation and language model": fitted["both"]["calibration"],
        "language model": fitted["model"]["calibration"],
        "annotation, missense": calibrations(alone["variants"])["annotation, missense"],
    }
    title = "Variants of ClinVar's held-out genes"
    plot_calibration(predictors, options.out, title=title, positive="pathogenic")


if __name__ == "__main__":
    main()
