"""Benchmarks of jaxrnn beside its peers: ``python -m bench --help``.

Reading order: `core` (what a case and a contender are), `timing` (how they are timed), `runner`
(one suite from start to finish), `suites` (the tables of cases), `peers` (an adapter a library).
"""
