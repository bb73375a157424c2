"""Reads what runs leave behind: figures and one self-contained HTML page."""
