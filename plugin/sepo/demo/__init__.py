"""A demonstration that needs neither a hub nor a GPU: a real small model and preference pairs with known wrong spans.

``sepo.demo.model`` builds the model directory, ``sepo.demo.dataset`` writes the data. Importing this package is cheap.
"""
