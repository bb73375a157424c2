"""Public data sets of the credit benchmark by name: adapters from published files to span-labelled pairs.

``registry`` names the data sets, with licence and source; ``rows`` reads files and checks fields; every other module
reads one published format. No data is part of this package: the files are downloaded by the user.
"""
