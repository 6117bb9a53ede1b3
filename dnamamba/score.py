"""`python -m dnamamba.score`: zero-shot scores for every alternate allele of a VCF."""

from dnamamba import verbs

main = verbs.main("score")
if __name__ == "__main__":
    verbs.run(main)
