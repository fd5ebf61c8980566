"""Pools x methods x budgets x seeds x evaluations: what is to be computed, who computes it, and what came out.

`plan` reads a config (no slow import), `cells` makes its cells, `evaluations` judges one, `store` keeps them on disk,
`work` computes what is missing; `summary`, `curves` and `page` tell the outcome, `published` puts it beside a paper's.
"""
