"""Pictures of tables. As a module of a verb, `python -m dnamamba.report`: runs on one page, see `dnamamba.pages`."""

from dnamamba import verbs

main = verbs.main("report")
