"""`python -m dnamamba.likelihood`: per-position likelihoods of a genome as tracks and tables."""

from dnamamba import verbs

main = verbs.main("likelihood")
if __name__ == "__main__":
    verbs.run(main)
