"""The papers re-run: `python -m paper_repro`.

One module a paper; names with a leading underscore are what they share.
"""
