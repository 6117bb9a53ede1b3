"""`python -m dnamamba.mutagenesis`: all single-base changes of a region, as a matrix and a picture."""

from dnamamba import verbs

main = verbs.main("mutagenesis")
if __name__ == "__main__":
    verbs.run(main)
