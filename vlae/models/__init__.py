"""Hierarchical models behind one interface; rung 0 is the one nearest the pixels."""
