"""`python -m dnamamba.finetune`: train a classifier on a pretrained model, or from scratch to compare with."""

from dnamamba import verbs

main = verbs.main("finetune")
verbs.make_callable(__name__)
if __name__ == "__main__":
    verbs.run(main)
