"""Generates the preference pairs that ``sepo.demo`` ships. Not part of the wheel.

``python -m demo_pairs`` writes them anew into ``sepo/demo/data``; a test compares them byte for byte.
"""
