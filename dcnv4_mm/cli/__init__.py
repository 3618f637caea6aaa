"""Helpers of the command-line programs in tools/; not a public interface."""
