"""Answers about pictures that somebody names."""
