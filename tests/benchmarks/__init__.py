"""Tests of what measures: that it measures the same with every tool, and counts right."""
