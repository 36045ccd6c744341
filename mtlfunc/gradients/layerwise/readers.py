"""The nodes that are understood, by their name and which of their inputs a leaf is."""

from .elementwise import ELEMENTWISE
from .products import PRODUCTS

READERS = PRODUCTS | ELEMENTWISE
