"""A demonstration that needs no hub and no GPU: a real small model and preference pairs with known wrong spans.

``sepo.demo.model`` builds the model folder, ``sepo.demo.pairs`` writes the data. Importing this package is cheap.
"""
