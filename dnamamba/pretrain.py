"""`python -m dnamamba.pretrain`: train a Mamba language model on a genome; without arguments a demo."""

from dnamamba import verbs

main = verbs.main("pretrain")
verbs.make_callable(__name__)
if __name__ == "__main__":
    verbs.run(main)
