"""Generates the preference pairs that ``sepo.demo`` ships. Not part of the wheel.

``python -m demo_pairs`` writes the pairs with known errors anew into ``sepo/demo/data``; a test compares them byte for
byte. ``python -m demo_pairs.answers`` samples the demonstration's model and writes the pairs of its own responses.
"""
