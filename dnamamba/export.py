"""`python -m dnamamba.export`: a pretrained model in a format of other programs."""

from dnamamba import verbs

main = verbs.main("export")
if __name__ == "__main__":
    verbs.run(main)
