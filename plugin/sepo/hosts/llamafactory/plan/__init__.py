"""`sepo plan`: estimate of the memory that a recipe needs in each phase, before any model is loaded."""
