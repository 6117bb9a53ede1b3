"""What Python calls: `dnamamba.load` gives a `Model`; `dnamamba.pretrain` and `dnamamba.finetune` give a `Run`.

The same functions compute what the verbs of the command line write, so the numbers are equal.
"""
