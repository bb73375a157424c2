"""`sepo plan`: what memory a recipe needs, phase by phase, before anything is loaded."""
