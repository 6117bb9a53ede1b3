"""`python -m dnamamba.predict`: class probabilities of a fine-tuned model on FASTA, BED, tables or VCF."""

from dnamamba import verbs

main = verbs.main("predict")
if __name__ == "__main__":
    verbs.run(main)
