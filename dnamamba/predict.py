"""`python -m dnamamba.predict`: class probabilities of a fine-tuned model on FASTA, BED or tables."""

from dnamamba import verbs

main = verbs.main("predict")
if __name__ == "__main__":
    verbs.run(main)
