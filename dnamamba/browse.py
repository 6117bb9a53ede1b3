"""`python -m dnamamba.browse`: a region with its likelihoods, variants and genes as a page of a genome browser."""

from dnamamba import verbs

main = verbs.main("browse")
if __name__ == "__main__":
    verbs.run(main)
