"""Reports on the files of runs and stores: figures and one self-contained HTML page."""
