"""Likelihoods of a genome, its contigs shared out among jobs with a GPU each; a last job writes the files of all.

    snakemake -s pipelines/cluster/likelihood.smk --profile pipelines/profiles/slurm \
        --config checkpoint=runs/hg38 genome=hg38.fa.gz out=tracks/hg38 shards=12

Without `--profile` the jobs run here: add `--cores 4 --resources gpu=1`. Given again, finished shards stay.
"""

SHARDS = range(1, int(config["shards"]) + 1)
COMMAND = f"python -m dnamamba.likelihood --checkpoint {config['checkpoint']} --genome {config['genome']}"
OUT = config["out"]


rule all:
    input:
        f"{OUT}.json",


rule shard:
    output:
        touch(f"{OUT}.shard-{{number}}.done"),
    resources:
        gpu=1,
    shell:
        f"{COMMAND} --out {OUT} --shard {{wildcards.number}}/{len(SHARDS)}"


rule files:
    input:
        expand(f"{OUT}.shard-{{number}}.done", number=SHARDS),
    output:
        f"{OUT}.json",
    resources:
        gpu=1,
    shell:
        f"{COMMAND} --out {OUT}"
