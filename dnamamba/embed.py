"""`python -m dnamamba.embed`: embeddings of regions or sequences."""

from dnamamba import verbs

main = verbs.main("embed")
if __name__ == "__main__":
    verbs.run(main)
