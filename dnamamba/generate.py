"""`python -m dnamamba.generate`: sequences sampled from a pretrained model."""

from dnamamba import verbs

main = verbs.main("generate")
if __name__ == "__main__":
    verbs.run(main)
