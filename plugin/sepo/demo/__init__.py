"""A demonstration that needs neither a hub nor a GPU: a real small model, its preference pairs and its results.

``sepo.demo.model`` builds the model directory, ``sepo.demo.dataset`` writes the data, ``sepo.demo.results`` reads and
prints what the runs left; ``sepo.hosts.llamafactory.demo`` runs it. Importing this package is cheap.
"""
