"""`python -m dnamamba.report`: runs on one page: curves, data, results by class, comparisons."""

from dnamamba import verbs

main = verbs.main("report")
if __name__ == "__main__":
    verbs.run(main)
