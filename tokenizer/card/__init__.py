"""The card of a vocabulary: what it holds and how it cuts text, as numbers, tables and a page."""
