"""The smallest settings of the arena."""

from mtlfunc.studies.arena import Settings

TINY = Settings(seeds=3, tuning=2, budget=0.02)
