"""Machinery of the book: its data and weights, fetched with care, and rendered pages."""
